"""The model card: what the artifact is, what it was made from, what it can do and where it falls short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fingerpost.classifiers.embedded.text import HISTORY_TOKENS, LATEST_TOKENS

_HEAD = """# Model card: fingerpost's embedded reader

A six-layer encoder (22 million parameters, int8) that reads a conversation and the descriptions of routes and says how likely
each route, and none of them, is. One encoder pass a decision; route vectors are computed once.

- Started from: sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), package `{package}`, SHA-256 `{sha256}`.
- Trained on: `train/data` (written for this project, CC-BY-4.0), Schema-Guided Dialogue train with SGD-X rewordings
  (CC-BY-SA-4.0), SNIPS train (CC0). Digest of the data: `{data}`.
- Never trained on: CLINC150, BANKING77, HWU64, anything under `eval/`, the written sets marked `calibrate`, `unseen` or
  `languages`.
- Input: the user's latest turn (its first and last {half} tokens where it is longer than {latest}), slips of the keyboard
  mended, then up to {history} tokens of what was said before, newest first. System text and tool output are not read.
- Route texts are drawn towards precedents: texts of the training data's routes and the mean vectors of their conversations.
- Made by the loop of `python -m fingerpost.train --data DIR --out DIR` (seed {seed}): {stages}.
  {fresh}The shipped encoder is {kept:.0%} trained and the rest MiniLM's own weights.

## Figures

Development data, decided as `fingerpost eval` decides (so "other" may be chosen, and is wrong, in tables without it).
The recipe was chosen by looking at these boards; nothing of them was trained on or fitted to, but expect a little less on fresh
data. The written sets share topics (banking, voice assistants, household, general assistants) with CLINC150, BANKING77, HWU64
and the default routes, never sentences: those boards measure unseen wordings, `sgd` and `written_unseen` unseen products too,
`written_languages` requests in fourteen languages other than English.
Calibration used dialogues of Schema-Guided Dialogue's dev part that are on no board; how its parts and `other` are weighted
in it, and how much sharper scores are made after it (`PLAINER`), was chosen by these boards, so their errors flatter.

| board | rows | accuracy | dialogues | ECE | taken for other | AUROC of other |
|---|---|---|---|---|---|---|
"""

_FRESH = "Of the trained weights, {share:.0%} are the last stage's, and the rest those of an artifact trained for {stages}. "

_TAIL = """
## Limits

- Long latest turns are read at both ends only; a request in the middle of a long paste can be missed.
- English first: the vocabulary is English. Other languages work as far as their words share pieces with what was trained: see
  `written_languages`, where complaints, proofs and code are mostly understood, and small talk mostly is not.
- A route whose right answer needs world knowledge that the description does not hint at is often missed; two or three examples
  in the configuration mend most of it.
- `other` is a judgement about the description: broad descriptions need their cases listed to attract specific requests.
"""


def model_card(settings: Mapping[str, Any]) -> str:
    """The model card as Markdown, from the artifact's JSON."""
    head = _HEAD.format(
        package=settings["base"]["package"],
        sha256=settings["base"]["sha256"],
        data=settings["data_sha256"],
        seed=settings["plan"]["seed"],
        stages=_told(settings["stages"]),
        fresh=_FRESH.format(share=settings["fresh"], stages=_told(settings["other"])) if "fresh" in settings else "",
        kept=settings["kept"],
        latest=LATEST_TOKENS,
        half=LATEST_TOKENS // 2,
        history=HISTORY_TOKENS,
    )
    return head + "".join(_line(name, board) for name, board in settings["figures"].items()) + _TAIL


def _told(stages: Sequence[Mapping[str, int]]) -> str:
    return ", then ".join(f"{stage['steps']} steps on {stage['sets']} written sets" for stage in stages)


def _line(name: str, board: Mapping[str, float]) -> str:
    keys = ("accuracy", "group_accuracy", "ece", "taken_for_other", "other_auroc")
    cells = [f"{board[key]:.3f}" if key in board else "-" for key in keys]
    return f"| {name} | {board['n']} | {' | '.join(cells)} |\n"
