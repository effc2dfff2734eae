"""JSON without its long texts, in which what stands around an image of megabytes is found and counted at once. Pure."""

from __future__ import annotations

import re

import msgspec

from fingerpost.errors import InvalidRequest
from fingerpost.splice import Fields, Member, Source, locate

LARGE = 1_000_000
"""Bytes of a body from which on looking for long texts pays."""

LONG = 65_536
"""Bytes of a text from which on it is taken out."""

MOST = 4096
"""Texts that are looked at; a body of more of them is hardly made of long ones."""

_PAYLOAD = re.compile(rb'"(?:url|image_url|file_data)"[ \t\n\r]*+:[ \t\n\r]*+"data:[^" ,]{0,100};base64,')
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


class Hollow(msgspec.Struct, frozen=True):
    """Valid JSON whose long texts are empty, and the holes: where one was (its offset here) and how many bytes it had.

    `only_payloads` says that all of them were data URLs of images and files, where the API has those.
    """

    source: Source
    holes: tuple[tuple[int, int], ...] = ()
    only_payloads: bool = False

    def located(self, fields: Fields) -> dict[str, Member]:
        """Where the fields that were read from `source` stand in the whole JSON."""
        restored = self._restored
        members = locate(fields).items()
        return {name: Member(restored(m.start), restored(m.value), restored(m.end)) for name, m in members}

    def _restored(self, at: int) -> int:
        return at + sum(length for hole, length in self.holes if hole < at)


def hollow(source: Source, large: int = LARGE, long: int = LONG) -> Hollow:
    """The JSON of at least `large` bytes with texts of more than `long` emptied, as far as that is quickly done.

    What is no JSON comes out as none either.
    """
    if len(source) < large:
        return Hollow(source)
    kept: list[memoryview] = []
    holes: list[tuple[int, int]] = []
    view, at, taken, size, only_payloads = memoryview(source), 0, 0, 0, True
    for _ in range(MOST):
        start = source.find(b'"', at)
        end = source.find(b'"', start + 1) if start >= 0 else -1
        if end < 0:
            break
        if source.find(b"\\", start, end) >= 0:
            text = _TEXT.match(source, start)
            if text is None:
                break
            at = text.end()
            continue
        at = end + 1
        if end - start > long:
            only_payloads = only_payloads and _is_payload(source, start)
            kept.append(view[taken : start + 1])
            size += len(kept[-1])
            holes.append((size, end - start - 1))
            taken = end
    return Hollow(b"".join([*kept, view[taken:]]), tuple(holes), only_payloads) if holes else Hollow(source)


def _is_payload(source: Source, start: int) -> bool:
    """Whether the text that begins there is a data URL as the value of a key that stands for one."""
    key = source.rfind(b'"', 0, max(source.rfind(b'"', 0, start), 0))
    return key >= 0 and _PAYLOAD.match(source, key) is not None


def check_values(source: Source, most: int) -> None:
    """Refuses JSON of more than `most` values, counted as the commas and opening brackets outside of its texts.

    Reading takes a microsecond for each value: a body of millions of them would stop everyone else for seconds. Counting takes
    one for each kilobyte, three where texts have to be left out, and nothing where a body is too short to hold so many, or in
    long texts.

    Raises:
        InvalidRequest: there are more.
    """
    if len(source) <= most:
        return
    source = hollow(source).source
    if _separators(source) <= most:
        return
    bare = source.replace(rb"\\", b"__").replace(rb"\"", b"__") if b"\\" in source else source
    # Each value has one text for its key and one for itself at most.
    if bare.count(b'"') > 4 * (most + 1) or _separators(b"".join(bare.split(b'"')[::2])) > most:
        error = InvalidRequest(f"the body has more than {most} values (server.max_values)")
        error.code = "too_many_values"
        raise error


def _separators(source: Source) -> int:
    return source.count(b",") + source.count(b"{") + source.count(b"[")
