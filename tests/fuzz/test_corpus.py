"""Every input that a fuzzing campaign kept still holds to what its target promises, and the campaign itself can start."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz.mutate import mutated

from fuzz import corpus


@pytest.mark.parametrize("name", corpus.TARGETS)
def test_what_is_kept_breaks_no_promise(name: str) -> None:
    target = corpus.load(name)
    kept = corpus.kept(name)
    for data in (*target.seeds, *kept):
        target.check(data)
    assert kept == sorted(set(kept), key=lambda data: (len(data), data))


@pytest.mark.parametrize("name", corpus.TARGETS)
def test_changed_seeds_break_no_promise(name: str) -> None:
    target, random_ = corpus.load(name), random.Random(name)
    changed = [mutated(random_.choice(target.seeds), target.longest, random_, target.words) for _ in range(200)]
    for data in changed:
        target.check(data)
    assert len(set(changed)) > 100
    assert max(map(len, changed)) <= target.longest


def test_the_corpus_is_small() -> None:
    assert sum(file.stat().st_size for file in corpus.FOLDER.iterdir()) < 500_000


def test_inputs_are_written_and_read_alike(tmp_path: Path) -> None:
    inputs = [bytes(range(256)), b"", b'"\\\n']

    assert corpus.keep("x", [*inputs, b""], tmp_path) == 3
    assert corpus.kept("x", tmp_path) == [b"", b'"\\\n', bytes(range(256))]
    corpus.spread(inputs, tmp_path / "files")
    assert sorted(file.read_bytes() for file in (tmp_path / "files").iterdir()) == sorted(inputs)
