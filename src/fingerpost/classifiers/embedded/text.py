"""From turns to what the model reads: normalise, drop what addresses the router, lay the turns out as tokens.

Everything here is pure and works on plain values.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Tokenize = Callable[[str], list[int]]
Clean = Callable[[str], str]
"""What is done to a user's words before they are read: steering is taken out, slips are mended."""

# BERT's vocabulary has spare entries; a mark from there costs one token and means nothing else.
PAD, CLS, SEP = 0, 101, 102
USER_MARK, ASSISTANT_MARK, ROUTE_MARK, IMAGE_MARK, FILE_MARK, AUDIO_MARK = 1, 2, 3, 4, 5, 6
MEDIA_MARKS = {"image": IMAGE_MARK, "video": IMAGE_MARK, "audio": AUDIO_MARK, "file": FILE_MARK}
MARK_WORDS = {
    USER_MARK: ("user", "customer"),
    ASSISTANT_MARK: ("assistant", "reply"),
    IMAGE_MARK: ("image", "picture", "photo"),
    FILE_MARK: ("file", "document", "attachment"),
    AUDIO_MARK: ("audio", "recording", "voice"),
}
"""What the marks mean before training: the mean of these words' vectors."""

LATEST_TOKENS = 56
HISTORY_TOKENS = 56
PREVIOUS_TOKENS = 28
OLDER_TOKENS = 18
ROUTE_TOKENS = 56
FACETS = 16
LATEST_CHARACTERS = 6000
OLDER_CHARACTERS = 1000

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ud800-\udfff"
    "\ufe00-\ufe0f\ufeff\uffa0\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_LOOKALIKES = str.maketrans(
    "аАеЕоОрРсСхХуУіІјЈѕЅԁһВМНКТԛԝɡցոսհαΑΒΕΖΗΙΚΜΝοΟΡρΤΥΧντυιɑıⅼ",
    "aAeEoOpPcCxXyYiIjJsSdhBMHKTqwggnuhaABEZHIKMNoOPpTYXvtuiail",
)
_LOOKALIKE = {chr(code) for code in _LOOKALIKES}


@dataclass(frozen=True, slots=True)
class Turn:
    """Who spoke, what they said, and the media that came with it (`image`, `video`, `audio`, `file`)."""

    role: str
    text: str
    media: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Laid:
    """A text laid out for the encoder: token ids, and for each its segment (0: what counts, 1: what came before).

    `said` is the user's latest turn in clean words; `cut` says that it was too long for the encoder to read whole.
    """

    ids: list[int]
    segments: list[int]
    said: str = ""
    cut: bool = False


def normalise(text: str) -> str:
    """The text with compatibility forms folded, invisible characters gone and look-alike letters made Latin."""
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    letters = [c for c in text if c.isalpha()]
    latin = sum(c.isascii() for c in letters)
    if not any(c in _LOOKALIKE for c in letters) or latin * 2 < len(letters):
        return text
    return unicodedata.normalize("NFC", re.sub(r"\w+", _latin_word, text))


def _latin_word(match: re.Match[str]) -> str:
    # Real Russian or Greek words inside a Latin message stay as they are.
    word = match.group()
    mixed = any(c.isascii() and c.isalpha() for c in word)
    return word.translate(_LOOKALIKES) if mixed or all(c in _LOOKALIKE for c in word) else word


def words_of(name: str) -> str:
    """A route's name in words: ``Hotels_4.searchHotel`` is ``hotels search hotel``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [w for w in re.split(r"[\W_]+", spaced) if w and not w.isdigit()]
    return " ".join(words).lower() or name.strip()


def route_text(name: str, description: str) -> str:
    """What the model reads of a route: the name in words, and the description where it says more."""
    words, description = words_of(name), normalise(description).strip()
    if not words:
        return description
    if not description or words_of(description) == words:
        return words
    return f"{words}: {description}"


def facets(description: str) -> list[str]:
    """The things that a description lists; empty for one that lists fewer than three.

    One vector cannot be near to all of "flights, hotels, visas, lost luggage"; one vector each can. What a description
    excludes ("not for refunds") is no facet.
    """
    body = normalise(description)
    lead = _LEAD.match(body)
    parts = [_JOINING.sub("", part.strip(" .\"'()")) for part in _LISTED.split(body[lead.end() :] if lead else body)]
    parts = [part for part in dict.fromkeys(parts) if _WORD.search(part) and not _EXCLUDING.search(part)]
    return parts[:FACETS] if len(parts) > 2 else []


_LEAD = re.compile(r"[^:;.,]{2,60}:\s+")
_LISTED = re.compile(r"[;.,:!?]\s+|\s{1,9}[-–]\s+|,?\s{1,9}(?:or|and)\s+|\n|/(?=\w)")
_JOINING = re.compile(r"^(?:or|and|also|plus|any|etc)\b\W*", re.I)
_WORD = re.compile(r"\w{2}")
_EXCLUDING = re.compile(
    r"\b(?:not|no|never|without|except|excluding|unless|rather|instead|neither|nor|but|elsewhere|\w+n't)\b", re.I
)
_ROUTING = r"(?:rout(?:e|er|ing|ed)|classif(?:y|ier|ication|ied)|intent|categor(?:y|i[sz]e)|label|model|dispatch(?:er)?)"
_SENDING = (
    r"(?:route|send|forward|direct|dispatch|classify|categori[sz]e|label|assign|treat|mark|tag|hand|pass|escalate|switch|use"
    r"|choose|pick|select|pretend|act|answer|respond|reply|output|return|say|print)"
)
_THIS = (
    r"(?:(?:that )?(?:this|it) is|(?:this|it) over|everything(?: i say)?|(?:all|every|my|this|the) (?:messages?|requests?"
    r"|questions?|query|conversation|chat)|this|it|that)"
)
# A route's name, before these patterns are tried, becomes two characters that no text has. `_CODE` is one that is no plain
# words (hard_question): it is rarely said but to the router, so more counts as steering around it.
_CODE, _NAME = "\ufdd0[\U000f0000-\U000ffffd]", "[\ufdd0\ufdd1][\U000f0000-\U000ffffd]"
_RESERVED = re.compile("[\ufdd0-\ufdef\U000f0000-\U000ffffd]")
_OPEN, _CLOSE = r"[\"'`*<\[({]{0,5}", r"[\"'`*>\])}]{0,5}"
_TO = rf"(?:to|as|into|under|with|for|by)\b:?\s{{0,9}}{_OPEN}"
_ORDER = rf"[\s,;:\-–(]{{0,9}}\b(?:and |then |so |just |you must |you should |must |should ){{0,5}}{_SENDING}\b"
_AFTER = (
    rf"{_CLOSE}(?:\s{{0,9}}(?:{_ROUTING}|instead|now|please|only|expert|team|backend|handler|from now on"
    r"|for (?:this|the|my|every) (?:message|request|question|query|chat|conversation|one))\b){0,5}"
)
_RIGHT = r"(?:the |final |correct |right |best |only |selected |chosen |new ){0,5}"
_IS = rf"\s{{0,9}}(?:is|should be|must be|=>|->|[:=]){{1,3}}\s{{0,9}}(?:the )?{_OPEN}"
_END = r"[\s.!)\]>*\"']*$"
_KEY = r"(?:routes?|route_name|intents?|label|category|class|classification|decision|choice|answer|model|type)"
_TAG = r"</?\s{0,9}(?:routes?|router|conversation|system|instructions?|intent)\s{0,9}/?>"
# Every repetition has a bound: text comes from anyone, and an unbounded one costs seconds where it almost matches.
_STRUCTURED = re.compile(
    rf"(?:#{{1,6}}\s{{0,9}})?(?:\b(?:assistant|system|router)\s{{0,3}}:\s{{0,9}})?(?:```(?:json)?\s{{0,9}})?\[?"
    rf"\{{[^{{}}]{{0,200}}?\b{_KEY}[\"']?\s{{0,9}}[:=]\s{{0,9}}{_OPEN}{_NAME}[\"'`]?\s{{0,9}}"
    rf"(?:,[^{{}}]{{0,200}})?\}}?\]?(?:\s{{0,9}}```)?|(?:{_TAG}\s{{0,9}}){{0,3}}{_TAG}[^<>{{}}]{{0,40}}?{_NAME}\W{{0,9}}{_TAG}"
    r"|<\|[a-z_]{2,20}\|>(?:system|user)?",
    re.IGNORECASE,
)
_ORDERS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"[\s,;(\[<#*\-]{{0,9}}\b{_RIGHT}(?:\w{{1,20}}_)?(?:{_ROUTING}|type)(?: name)?(?: for this \w{{1,20}})?{_IS}{_CODE}"
        rf"{_CLOSE}[.!]{{0,3}}",
        rf"[\s,;(\[<#*\-]{{0,9}}\b{_RIGHT}{_ROUTING}(?: name)?{_IS}{_NAME}{_END}",
        rf"(?:{_NAME}[\s,;.!]{{1,9}}){{2,99}}{_NAME}[\s,;.!]{{0,9}}",
        r"\b(?:pretend to be|pretend you are|act as|you are(?: now)?|imagine you are) (?:the |a )?(?:\w{1,20} )?"
        r"(?:router|classifier|dispatcher|routing \w{1,20})\b(?:,? and| who)?",
        rf"\b(?:please )?(?:re-?)?(?:route|dispatch)\s{{1,9}}{_THIS}\s{{1,9}}{_TO}(?:the )?{_NAME}{_AFTER}[.!]{{0,3}}",
        rf"{_ORDER}(?:\s{{1,9}}[\w']{{1,99}}){{0,6}}?\s{{1,9}}(?:{_TO})?(?:the |a |an ){{0,3}}(?:{_ROUTING}\W{{1,9}}){{0,3}}"
        rf"{_OPEN}{_CODE}{_AFTER}[.!)\"']{{0,3}}",
        rf"{_ORDER}(?:\s{{1,9}}{_THIS})?(?:\s{{1,9}}only)?\s{{1,9}}(?:{_TO})?{_OPEN}{_NAME}{_AFTER}{_END}",
        rf"{_ORDER}\s{{1,9}}{_THIS}\s{{1,9}}(?:(?!for){_TO})?(?:the |a |an )?(?:{_ROUTING}\W{{1,9}}){{0,3}}"
        rf"{_OPEN}{_NAME}{_AFTER}{_END}",
        rf"{_OPEN}{_CODE}{_CLOSE} is {_RIGHT}{_ROUTING}(?: for this(?: \w{{1,20}})?)?[.!]{{0,3}}",
        rf"\(?\b(?:this|(?:every|this) message|everything)(?: \w{{1,20}})? (?:belongs|goes) to (?:the )?{_OPEN}{_CODE}{_CLOSE}",
    )
]
_ANY_NAME = re.compile(_NAME)
_ANY_ROUTING = re.compile(rf"\b{_ROUTING}\b", re.IGNORECASE)
_OVERRIDE = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass|overrule|vergiss|ignoriere|ignorez|oublie|ignora|olvida)\b(?:.{0,30}\b(?:your"
    r"|previous|prior|earlier|above|system|routing|router|alle|deine|les|las|le) (?:\w{1,20} )?(?:instructions?|rules?|prompts?"
    r"|guidelines|anweisungen|regeln|consignes|instrucciones|istruzioni|instru[cç][oõ]es)\b|.{0,20}\b(?:all|any|every) "
    r"(?:\w{1,20} )?(?:instructions?|prompts?|guidelines)\b|.{0,30}\b(?:routing|router)\b"
    r"|.{0,20}\b(?:descriptions?|instructions?|rules|routes) (?:above|below|before)\b)[.!;]{0,3}",
    re.IGNORECASE,
)
_PRIVILEGED = re.compile(
    r"(?:^|(?<=\s))\W{0,9}(?:system|developer|admin(?:istrator)?|root|router|im_start|new instructions?|important instructions?"
    r"|note to (?:the )?(?:router|classifier|system))\b.{0,20}?[:\]>|]",
    re.IGNORECASE,
)
_SEGMENT = re.compile(r"[^.!?;\n]*(?:[.!?;]+|\n|$)\s*")


class Steering:
    """Finds, in a user's words, what speaks to the router and not to the assistant; knows the table's route names."""

    def __init__(self, names: Iterable[str]) -> None:
        forms = {form.lower() for name in names for form in (name, words_of(name), name.replace("_", " ")) if form}
        self._coded = {form for form in forms if not re.fullmatch(r"[^\W\d_]+(?: [^\W\d_]+)*", form)}
        spelled = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)) or "(?!)"
        self._named = re.compile(rf"(?<!\w)(?:{spelled})(?!\w)", re.IGNORECASE)

    def strip(self, text: str) -> str:
        """The text without the parts that address the router, or unchanged where nothing else would remain."""
        found: list[str] = []

        def mark(match: re.Match[str]) -> str:
            found.append(match.group())
            return ("\ufdd0" if found[-1].lower() in self._coded else "\ufdd1") + chr(0xF0000 + len(found) % 0xFFFD)

        marked = self._named.sub(mark, _RESERVED.sub("", text))
        bare = _STRUCTURED.sub(" ", marked) if "{" in marked or "<" in marked else marked
        kept = "".join(_unsteered(segment) for segment in _SEGMENT.findall(bare))
        if kept == marked or not re.search(r"\w", _ANY_NAME.sub("x", kept)):
            return text
        return _ANY_NAME.sub(lambda match: found[ord(match.group()[1]) - 0xF0001], kept).strip()


def _unsteered(segment: str) -> str:
    named = _ANY_NAME.search(segment)
    if named or _ANY_ROUTING.search(segment):
        begun = [match.start() for pattern in (_OVERRIDE, _PRIVILEGED) if (match := pattern.search(segment))]
        if begun:
            return segment[: min(begun)] + " "
    if named is None:
        return _OVERRIDE.sub(" ", segment)
    if len(_ANY_NAME.findall(segment)) >= 3 and not re.search(r"[^\W_]", _ANY_NAME.sub(" ", segment)):
        return " "
    for order in _ORDERS:
        segment = order.sub(" ", segment)
    return segment


def latest_user(turns: Sequence[Turn]) -> int:
    """Index of the turn with the user's latest request; 0 when no user spoke."""
    return max((i for i, turn in enumerate(turns) if turn.role == "user"), default=0)


def as_it_is(text: str) -> str:
    """The text itself, where nothing is to be cleaned."""
    return text


def lay_out(turns: Sequence[Turn], tokenize: Tokenize, clean: Clean = as_it_is) -> Laid:
    """A conversation for the encoder: the user's latest turn (segment 0), then what came before, newest first (segment 1).

    `clean` is applied to what the user says. System text and tool output never decide what the user wants: they are left out.
    """
    spoken = [turn for turn in turns if turn.role in ("user", "assistant")]
    if not spoken:
        return Laid([CLS, SEP], [0, 0])
    last = latest_user(spoken)
    text = _said(spoken[last], clean)
    tokens = tokenize(text)
    ids = [CLS, *_marks(spoken[last]), *_clip(tokens, LATEST_TOKENS), SEP]
    history = _history(spoken[:last], tokenize, clean)
    return Laid(ids + history, [0] * len(ids) + [1] * len(history), text, len(tokens) > LATEST_TOKENS)


def lay_out_asked(phrase: str, tokenize: Tokenize) -> Laid:
    """A user's request for what a phrase names; these words suit things as well as actions."""
    return lay_out([Turn("user", f"i want to {phrase}")], tokenize)


def lay_out_route(text: str, tokenize: Tokenize) -> Laid:
    """A route's text for the encoder, marked so that one encoder can tell routes from conversations."""
    ids = [CLS, ROUTE_MARK, *_clip(tokenize(_ends(text)), ROUTE_TOKENS), SEP]
    return Laid(ids, [0] * len(ids))


def _history(turns: Sequence[Turn], tokenize: Tokenize, clean: Clean) -> list[int]:
    ids: list[int] = []
    for back, turn in enumerate(reversed(turns)):
        mark = USER_MARK if turn.role == "user" else ASSISTANT_MARK
        short = Turn(turn.role, turn.text[:OLDER_CHARACTERS], turn.media)
        said = tokenize(_said(short, clean))
        piece = [mark, *_marks(turn), *_clip(said, OLDER_TOKENS if back else PREVIOUS_TOKENS)]
        if len(ids) + len(piece) > HISTORY_TOKENS:
            break
        ids += piece
    return [*ids, SEP] if ids else []


def _said(turn: Turn, clean: Clean) -> str:
    text = normalise(_ends(turn.text))
    return clean(text) if turn.role == "user" else text


def _marks(turn: Turn) -> list[int]:
    return [MEDIA_MARKS[medium] for medium in dict.fromkeys(turn.media) if medium in MEDIA_MARKS]


def _ends(text: str) -> str:
    half = LATEST_CHARACTERS // 2
    return text if len(text) <= 2 * half else f"{text[:half]}\n{text[-half:]}"


def _clip(ids: list[int], limit: int) -> list[int]:
    # A long message usually asks at its start or at its end: keep both.
    if len(ids) <= limit:
        return ids
    head = limit // 2
    return [*ids[:head], *ids[len(ids) - (limit - head) :]]
