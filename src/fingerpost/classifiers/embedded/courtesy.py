"""Polite openings in English: greetings, wishes and excuses before a request, which say nothing of what is asked."""

from __future__ import annotations

import re

_WORDS = frozenset(
    """
    a about advance again ahoy all alright am an and anyway apologies appreciate appreciated are around as ask asking
    assist assistance assistant at back be bear been before being bit bother bothering brief busy but can chance could
    day days dear disturb disturbing do doing easy enough everybody everyone excuse favor favour few finds fine for
    forgive friend friends from get glad go goes going good got grateful great greetings had hallo hand happy has have
    having heart hello help helped helpful helping here hey heya hi hiya hope hopefully hoping howdy i i'd i'll i'm i've
    if in interrupt is it it's just keep kind kindly know late lend listen little love lovely madam may me message might
    mind minute minutes moment more must my need nice nicely ok okay oh on one or others out pardon patience perhaps
    please pleasant pls possible quick quickly question questions really reading request right sec second service shall
    should sir small so some somebody someone something sorry sort spare straight support sure take taking team thank
    thanks that the there thing things this time to today trouble troubling trust um uh urgent us very was weekend week
    welcome well were when whenever will wish with wonder wonderful wondering would writing yo you you'd you're your
    """.split()  # noqa: SIM905  (words are easier to read in a text)
)
"""What such an opening is made of. One other word, and it is part of the request."""

_SIGN = re.compile(
    r"\b(?:hi|hello|hey|hiya|heya|hallo|howdy|yo|ahoy|greetings|dear|hope|hoping|hopefully|trust you|wish you|sorry|apologies"
    r"|excuse|pardon|forgive|bear with|wondering|wonder|favou?r|be so (?:kind|good)|kind (?:of you|enough)|question|questions"
    r"|grateful|glad|appreciate|in advance|patience|good of you|help me|(?:lend|of) a hand|some (?:help|assistance)"
    r"|(?:trouble|bother|disturb|ask) you|for you|(?:have|had|get|got|spare) (?:a|some|one) (?:sec|second|minute|moment|time)"
    r"|me again|here goes|(?:one|another|small|little) (?:more )?(?:thing|request)|if (?:you|i) (?:don't mind|may|could)"
    r"|you(?:'re| are) (?:very )?(?:busy|well)|um|uh|anyway|alright|listen)\b"
)
"""What makes words of courtesy an opening; without it, as in "in the evening, please", they may say what is wanted."""

_GREETING = re.compile(
    r"\W*(?:a )?(?:very )?(?:good )?(?:morning|afternoon|evening|day)(?: (?:to you|all|everyone|there|team|sir))*\W*"
)
_PIECE = re.compile(r"[^.!?,:;\n]{0,120}[.!?,:;\n]+\s*")
_WORD = re.compile(r"\w+(?:['’]\w+)?")
_LONGEST = 400
"""Characters of an opening; what is longer tells a story."""


def without_opening(text: str) -> str:
    """The text without the polite opening that it begins with; unchanged where fewer than two words would remain."""
    at = 0
    while at < _LONGEST and (piece := _PIECE.match(text, at)) and _is_courteous(piece.group().lower().replace("’", "'")):
        at = piece.end()
    return text[at:] if at and len(_WORD.findall(text[at : at + _LONGEST])) > 1 else text


def _is_courteous(piece: str) -> bool:
    if _GREETING.fullmatch(piece):
        return True
    return _WORDS.issuperset(_WORD.findall(piece)) and bool(_SIGN.search(piece) or not _WORD.search(piece))
