"""Inputs that are kept: a file for each target, a line for each input, as a JSON string of its bytes read as Latin-1."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("corpus")
TARGETS = ("chat", "config", "http2", "reply", "request", "sse", "text")


@dataclass(frozen=True)
class Target:
    """What is fuzzed: a check that raises when a promise is broken, inputs to begin with, and words that they are made of."""

    name: str
    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]
    longest: int


def load(name: str) -> Target:
    """The target of that name."""
    module = importlib.import_module(f"fuzz.targets.{name}")
    return Target(name, module.check, tuple(module.SEEDS), tuple(module.WORDS), getattr(module, "LONGEST", 2048))


def kept(name: str, folder: Path = FOLDER) -> list[bytes]:
    """The inputs that are kept for a target."""
    file = folder / f"{name}.jsonl"
    lines = file.read_text(encoding="ascii").splitlines() if file.exists() else []
    return [json.loads(line).encode("latin-1") for line in lines]


def keep(name: str, inputs: Iterable[bytes], folder: Path = FOLDER) -> int:
    """Writes the inputs to keep for a target, shortest first, each once; returns how many."""
    chosen = sorted(set(inputs), key=lambda data: (len(data), data))
    lines = [json.dumps(data.decode("latin-1")) + "\n" for data in chosen]
    (folder / f"{name}.jsonl").write_text("".join(lines), encoding="ascii")
    return len(chosen)


def spread(inputs: Iterable[bytes], folder: Path) -> None:
    """Writes each input into a file of its own, named by its SHA-1, as libFuzzer wants them."""
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (folder / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
