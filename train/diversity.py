"""Reports how varied the written training data is: `python train/diversity.py [train/data]` prints Markdown."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def user_text(row: Row) -> str:
    """Everything the user says in a conversation."""
    said = []
    for message in row["messages"]:
        if message["role"] == "user":
            content = message["content"]
            said.append(content if isinstance(content, str) else " ".join(part.get("text", "") for part in content))
    return " ".join(said)


def words_of(text: str) -> list[str]:
    """Lower-case words; a character each in scripts that do not put spaces between words."""
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|\w+", text.lower())


def trigrams(words: Sequence[str]) -> list[tuple[str, ...]]:
    """All runs of three words; shorter texts count as one run."""
    return [tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))]


def nearest_overlaps(grams: Sequence[set[tuple[str, ...]]]) -> list[float]:
    """For each conversation, the Jaccard overlap of its trigrams with those of the conversation most like it."""
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, mine in enumerate(grams):
        for gram in mine:
            holders[gram].append(place)
    overlaps = []
    for place, mine in enumerate(grams):
        shared = Counter(other for gram in mine for other in holders[gram] if other != place)
        overlaps.append(max((count / len(mine | grams[other]) for other, count in shared.most_common(5)), default=0.0))
    return overlaps


def repeated_openings(rows: Iterable[Row]) -> float:
    """The share of conversations whose first three words also open another conversation."""
    openings = Counter(tuple(words_of(user_text(row))[:3]) for row in rows)
    return sum(count for count in openings.values() if count > 1) / openings.total()


def totals(sets: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """The lines about all sets together."""
    words = [words_of(user_text(row)) for row in rows]
    grams = [trigrams(one) for one in words]
    overlaps = nearest_overlaps([set(one) for one in grams])
    every = [gram for one in grams for gram in one]
    lengths, turns = [len(one) for one in words], [len(row["messages"]) for row in rows]
    languages, tags = Counter(row["lang"] for row in rows), Counter(tag for row in rows for tag in row["tags"])
    wordings = sum(len(route["wordings"]) for one in sets for route in one["routes"])
    share = {
        name: sum(test) / len(rows)
        for name, test in {
            "several turns": [count > 1 for count in turns],
            "other": [row["route"] == "other" for row in rows],
            "not English": [row["lang"] != "en" for row in rows],
        }.items()
    }
    return [
        f"- {len(sets)} route sets, {sum(len(one['routes']) for one in sets)} routes in {wordings} wordings, "
        f"{len(rows)} conversations",
        f"- distinct word trigrams: {len(set(every)) / len(every):.1%} of {len(every)}",
        f"- overlap with the nearest other conversation (Jaccard of trigrams): mean {statistics.mean(overlaps):.3f}, "
        f"95th percentile {sorted(overlaps)[int(0.95 * len(overlaps))]:.3f}, "
        f"over 0.5: {sum(o > 0.5 for o in overlaps) / len(rows):.2%}",
        f"- first three words shared with another conversation: {repeated_openings(rows):.1%}",
        f"- words by the user: median {statistics.median(lengths):.0f}, 10th to 90th percentile "
        f"{sorted(lengths)[len(lengths) // 10]} to {sorted(lengths)[9 * len(lengths) // 10]}, longest {max(lengths)}",
        "- " + ", ".join(f"{name} {value:.1%}" for name, value in share.items()) + f"; most messages in one: {max(turns)}",
        "- languages: " + ", ".join(f"{lang} {count}" for lang, count in languages.most_common()),
        "- tags: " + ", ".join(f"{tag} {count}" for tag, count in tags.most_common(16)),
    ]


def by_set(sets: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """A table with a line for each route set."""
    lines = [
        "| set | split | routes | wordings | conversations | several turns | other | languages | median words "
        "| distinct trigrams |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in sets:
        mine = [row for row in rows if row["set"] == one.get("areas_of", one["set"])]
        words = [words_of(user_text(row)) for row in mine]
        grams = [gram for said in words for gram in trigrams(said)]
        cells = [
            one["set"],
            one["split"],
            len(one["routes"]),
            sum(len(route["wordings"]) for route in one["routes"]),
            len(mine),
            f"{sum(len(row['messages']) > 1 for row in mine) / len(mine):.0%}",
            f"{sum(row['route'] == 'other' for row in mine) / len(mine):.0%}",
            len({row["lang"] for row in mine}),
            f"{statistics.median(len(said) for said in words):.0f}",
            f"{len(set(grams)) / len(grams):.0%}",
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return lines


def main() -> None:
    """Prints the report."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("data")
    sets, rows = read(folder / "route_sets.jsonl"), read(folder / "conversations.jsonl")
    print("\n".join([*totals(sets, rows), "", *by_set(sets, rows)]))


if __name__ == "__main__":
    main()
