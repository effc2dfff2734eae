"""Examples beside bare names, in route sets that training has not seen and whose requests are put obliquely."""

from __future__ import annotations

from pathlib import Path

import pytest

from fingerpost.chat import Conversation, Message
from fingerpost.routes import OTHER, Route, RouteTable
from fingerpost.train.data import RouteSet, Sample, load_written

SETS = load_written(Path(__file__).parents[3] / "train/data", "unseen")
COUNT = 3


def name_of(key: str, routes: RouteSet) -> str:
    return routes.routes[key][0][0]


def split(routes: RouteSet) -> tuple[dict[str, list[str]], list[Sample]]:
    """The first requests of each route, which become its examples, and all other conversations about one route."""
    examples: dict[str, list[str]] = {key: [] for key in routes.routes}
    rest = []
    for sample in routes.samples:
        mine = examples[sample.right[0]] if len(sample.right) == 1 else None
        if mine is not None and len(mine) < COUNT and len(sample.turns) == 1:
            mine.append(sample.turns[0].text)
        elif mine is not None:
            rest.append(sample)
    return examples, rest


@pytest.mark.parametrize("taught", [False, True])
def test_of_the_requests_for_routes_few_go_to_other(embedded, taught):
    asked = to_other = right = 0
    for routes in SETS:
        examples, rest = split(routes)
        described = [Route(name_of(key, routes), "", tuple(texts) * taught) for key, texts in examples.items()]
        table = RouteTable((*described, Route(OTHER)))
        for sample in rest:
            said = Conversation(
                tuple(Message(turn.role, (turn.text,) if turn.text else (), turn.media) for turn in sample.turns)
            )
            route = embedded.read(said, table).route
            asked, to_other, right = asked + 1, to_other + (route == OTHER), right + (route == name_of(sample.right[0], routes))

    assert asked > 400
    assert to_other < 0.1 * asked
    assert right > (0.55 if taught else 0.5) * asked
