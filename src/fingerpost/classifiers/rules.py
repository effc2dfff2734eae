"""Rules that a configuration states: what can be seen without understanding, such as an attached image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from fingerpost.chat import Conversation
from fingerpost.records import Verdict
from fingerpost.routes import RouteTable

_LETTER = r"[^\W\u0590-\u1dff\u2000-\U0010ffff]"
"""A letter or digit of a script that sets words apart and adds no endings without a mark: Latin, Greek, Cyrillic. In others,
such as Chinese or Korean, a keyword may stand anywhere."""


@dataclass(frozen=True)
class Rule:
    """A route and the conditions under which it is right; all that are stated must hold.

    `image`: the user's latest turn carries one (or must not). `keywords`: one of these words or phrases is in its text,
    whatever the case. `longer_than`: its text has more characters than this. `tools`: the request offers tools (or must not).
    `metadata`: the request's metadata has these values.
    """

    route: str
    image: bool | None = None
    keywords: tuple[str, ...] = ()
    longer_than: int | None = None
    tools: bool | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def holds(self, conversation: Conversation) -> bool:
        """Whether every stated condition is met."""
        latest = conversation.latest_user
        return (
            (self.image is None or self.image == bool(latest and latest.images))
            and (not self.keywords or self._keyword.search(conversation.text) is not None)
            and (self.longer_than is None or len(conversation.text) > self.longer_than)
            and (self.tools is None or self.tools == bool(conversation.tools))
            and all(conversation.metadata.get(key) == value for key, value in self.metadata.items())
        )

    @cached_property
    def _keyword(self) -> re.Pattern[str]:
        return re.compile("|".join(map(_whole, self.keywords)), re.IGNORECASE)


def _whole(keyword: str) -> str:
    """A pattern for a keyword that is not part of a longer word."""
    before = f"(?<!{_LETTER})" if re.match(_LETTER, keyword) else ""
    after = f"(?!{_LETTER})" if re.search(rf"{_LETTER}\Z", keyword) else ""
    return f"{before}{re.escape(keyword)}{after}"


class Rules:
    """Believes in the route of the first rule that holds; has no opinion when none does."""

    name = "rules"
    deadline: float | None = None

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)

    async def prepare(self, table: RouteTable) -> None:
        """Nothing to prepare."""

    async def classify(self, conversation: Conversation, table: RouteTable) -> Verdict | None:
        """Certainty about the first rule's route, where the table has that route."""
        for rule in self.rules:
            if rule.route in table.by_name and rule.holds(conversation):
                return Verdict({rule.route: 1.0}, self.name)
        return None

    async def aclose(self) -> None:
        """Nothing to give back."""
