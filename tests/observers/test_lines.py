"""An output that several processes write lines to."""

from __future__ import annotations

import io
import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from fingerpost.observers.lines import MOST, WholeLines, in_pieces


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"") + b"\n")), st.integers(1, 40))
def test_pieces_are_whole_lines_and_no_longer_than_they_may_be(lines: list[bytes], most: int) -> None:
    pieces = list(in_pieces(b"".join(lines), most))
    assert b"".join(pieces) == b"".join(lines)
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert all(len(piece) <= most or piece.count(b"\n") == 1 for piece in pieces)


def test_what_is_no_whole_line_is_written_too() -> None:
    assert list(in_pieces(b"one\ntwo", 4)) == [b"one\n", b"two"]
    assert list(in_pieces(b"longer", 4)) == [b"longer"]


WRITER = """
import io, sys
from fingerpost.observers.lines import WholeLines
out = io.TextIOWrapper(io.BufferedWriter(WholeLines(1), 1_000_000), encoding="utf-8")
for number in range(300):
    out.write("".join(sys.argv[1] * (400 + number % 300) + "\\n" for _ in range(30)))
    out.flush()
"""


def test_lines_of_several_processes_do_not_mix_in_a_pipe_that_is_always_full() -> None:
    reading, writing = os.pipe()
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, letter], stdout=writing) for letter in "abc"]
    os.close(writing)
    with open(reading, "rb") as pipe:
        lines = pipe.read().split(b"\n")
    assert [writer.wait(30) for writer in writers] == [0, 0, 0]
    assert lines.pop() == b""
    assert len(lines) == 3 * 300 * 30
    assert all(len(set(line)) == 1 and 400 <= len(line) < 700 for line in lines)


def test_batches_beyond_a_pipes_piece_arrive_whole() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        with io.TextIOWrapper(io.BufferedWriter(WholeLines(writing), 1_000_000), encoding="utf-8") as out:
            out.write("é" * 1000 + "\n" + "x" * (2 * MOST) + "\n")
        os.close(writing)
        assert pipe.read().decode() == "é" * 1000 + "\n" + "x" * (2 * MOST) + "\n"
