"""One target under Atheris: `python -m fuzz.run TARGET FOLDER [libFuzzer's options]`. A broken promise ends it."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

from fuzz.mutate import mutated

with atheris.instrument_imports(include=["fingerpost"]):
    from fuzz import corpus

    target = corpus.load(sys.argv[1])


def change(data: bytes, longest: int, seed: int) -> bytes:
    """A changed input: every other time by libFuzzer's own means, which compare values that the code compares."""
    random_ = random.Random(seed)
    if random_.random() < 0.4:
        return bytes(atheris.Mutate(data, longest))
    return mutated(data, longest, random_, target.words)


folder = Path(sys.argv[2])
corpus.spread([*target.seeds, *corpus.kept(target.name)], folder / "found")
options = [f"-max_len={target.longest}", f"-artifact_prefix={folder}/broken-", "-timeout=20", "-print_final_stats=1"]
atheris.Setup([sys.argv[0], *options, *sys.argv[3:], str(folder / "found")], target.check, custom_mutator=change)
atheris.Fuzz()
