"""Mends slips of the keyboard before the model reads a text: a word that nobody writes becomes the one that was meant.

A tokenizer breaks an unknown word into pieces that mean nothing, so one wrong letter can turn a decision. Only words are
mended that are in no list and one edit away from a listed word, only in English, and only for the model's eyes: the text that
is sent on is never touched.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from fingerpost.classifiers.embedded.courtesy import without_opening
from fingerpost.classifiers.embedded.text import Clean, Steering

_WORD = re.compile(r"(?<![\w@#/\\.~-])[A-Za-z]+(?![\w@/\\]|[.-]\w)")
_LETTERED = re.compile(r"[A-Za-z]+")
_LETTERS = "etaoinsrhldcumfpgwybvkxjqz"
_BEGINNINGS = ("un", "re", "de", "dis")
_ENDINGS = ("s", "es", "ed", "ing", "er", "ers", "ly")
_SHORTEST, _LONGEST = 4, 20
_COMMON = 6000
"""How many of the first words of the list are so common that a text made of them is English."""

_MOST = 16
"""More unknown words than this are no slips but names, code or a language of their own."""


class Spelling:
    """A list of words, the most frequent first."""

    def __init__(self, words: Iterable[str]) -> None:
        self._rank = {word: rank for rank, word in enumerate(dict.fromkeys(words))}

    def mend(self, text: str, own: Collection[str] = ()) -> str:
        """The text with slips mended; `own` are further words (lower case) that are right and are preferred."""
        words = _WORD.findall(text)
        unknown = {word for word in words if self._is_unknown(word, own)}
        others = [word for word in words if word.lower() not in own]
        if not unknown or len(unknown) > _MOST or not self._is_english(others, unknown):
            return text
        mended = {word: better for word in unknown if (better := self._nearest(word.lower(), own))}
        return _WORD.sub(lambda match: mended.get(match.group(), match.group()), text) if mended else text

    def _is_unknown(self, word: str, own: Collection[str]) -> bool:
        # getUserName is a name; RETUNR and Retunr are slips.
        plain = word.islower() or word.isupper() or word.istitle()
        lower = word.lower()
        return plain and _SHORTEST <= len(word) <= _LONGEST and not self._is_listed(lower, own)

    def _is_listed(self, word: str, own: Collection[str]) -> bool:
        return word in own or word in self._rank or any(stem in self._rank for stem in _stems(word))

    def _is_english(self, words: list[str], unknown: Collection[str]) -> bool:
        known = [word.lower() for word in words if word not in unknown]
        common = sum(self._rank.get(word, _COMMON) < _COMMON for word in known)
        return len(unknown) <= len(known) + 1 and common >= 0.7 * len(known)

    def _nearest(self, word: str, own: Collection[str]) -> str | None:
        """The listed word one edit away: one's own first, then one with the same first letter, then the most frequent."""
        known = len(self._rank)

        def order(found: tuple[str, int]) -> tuple[bool, bool, int, str]:
            other, weight = found
            return other not in own, other[0] != word[0], weight * self._rank.get(other, known), other

        found = [(other, weight) for other, weight in _edits(word) if len(other) > 2 and (other in self._rank or other in own)]
        return min(found, key=order)[0] if found else None


def whole_words(vocabulary: Mapping[str, int]) -> list[str]:
    """The plain words of a tokenizer's vocabulary in its order, which for BERT's is that of their frequency."""
    return sorted((word for word in vocabulary if word.isascii() and word.isalpha()), key=lambda word: vocabulary[word])


def cleaner(names: Iterable[str], texts: Iterable[str], spelling: Spelling) -> Clean:
    """What cleans requests to a table: takes out what asks for one of its `names` and polite openings, and mends slips but not
    words of its `texts`.
    """
    steering = Steering(names)
    own = frozenset(word.lower() for text in texts for word in _LETTERED.findall(text))
    return lambda text: without_opening(spelling.mend(steering.strip(text), own))


def _stems(word: str) -> Iterator[str]:
    """What the word may be a form of: mailed and mailing of mail, unblock of block."""
    for ending in _ENDINGS:
        if word.endswith(ending):
            stem = word.removesuffix(ending)
            yield from (stem, stem + "e", stem[:-1] if stem[-1:] == stem[-2:-1] else stem)
    yield from (word.removeprefix(beginning) for beginning in _BEGINNINGS if word.startswith(beginning))


def _edits(word: str) -> Iterator[tuple[str, int]]:
    """All strings one slip away, each with a weight that is higher for rarer slips."""
    for i in range(len(word) + 1):
        head, tail = word[:i], word[i:]
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:], 1
            yield head + tail[1:], 1 if tail[0] == tail[1] else 4
        elif tail:
            yield head, 1 if head.endswith(tail) else 4
        if tail:
            yield from ((head + letter + tail[1:], 4) for letter in _LETTERS)
        yield from ((head + letter + tail, 2) for letter in _LETTERS)
