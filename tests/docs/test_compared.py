"""The comparison claims nothing without a test of that name."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/compared.md").read_text(encoding="utf-8")
LINK = re.compile(r"\[([^\]]+)\]\(\.\./(tests/[\w/]+\.py)#(\w+)\)")


def tables(text: str = TEXT) -> list[list[list[str]]]:
    """The rows of every table, the head first, as their cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    rows = [[[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()] for block in blocks]
    return [[head, *body] for head, _, *body in rows]


FEATURES = [row for head, *body in tables() if head[-1] == "fingerpost" for row in body]
DEFECTS = [row for head, *body in tables() if head[-1] == "test" for row in body]


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_there_are_features_and_defects() -> None:
    assert len(FEATURES) >= 45
    assert len(DEFECTS) >= 35
    assert len(FEATURES) + len(DEFECTS) == sum(len(table) - 1 for table in tables())


@pytest.mark.parametrize(("file", "name"), sorted({link[1:] for link in LINK.findall(TEXT)}))
def test_every_linked_test_exists(file: str, name: str) -> None:
    assert name.startswith("test_")
    assert name in names_in(file)


@pytest.mark.parametrize("row", FEATURES, ids=lambda row: row[0])
def test_we_say_no_or_link_the_proof(row: list[str]) -> None:
    assert len(row) == 5
    assert row[4] == "no" or re.fullmatch(rf"{LINK.pattern}(?:, {LINK.pattern})*", row[4])
    assert not re.match(r"\[(?!yes\]|part: )", row[4])


@pytest.mark.parametrize("row", DEFECTS, ids=lambda row: row[0])
def test_every_defect_and_behaviour_has_its_tests(row: list[str]) -> None:
    assert len(row) == 3
    assert row[1]
    found = LINK.findall(row[2])
    assert found
    assert ", ".join(f"[{shown}](../{file}#{name})" for shown, file, name in found) == row[2]
    assert all(shown == f"`{name}`" for shown, _, name in found)


def test_a_claim_without_proof_would_be_found() -> None:
    _, row = tables("| | v1 | fingerpost |\n|---|---|---|\n| flies | no | yes |\n")[0]
    assert row[-1] == "yes"
    assert not LINK.findall(row[-1])
    assert "test_that_does_not_exist" not in names_in("tests/docs/test_compared.py")
