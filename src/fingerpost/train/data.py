"""Training data: route sets with several wordings and labelled conversations."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fingerpost.classifiers.embedded.text import Turn
from fingerpost.routes import OTHER
from fingerpost.train.augment import Padding

Wording = tuple[str, str]
"""A route's name and description, one of the several ways in which it might have been written."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled conversation.

    ``right`` are the equally right routes (empty: none of these), ``near`` the routes that must be among the candidates
    with them, ``blurred`` those that might be right too and so are never candidates unless they are near.
    """

    turns: tuple[Turn, ...]
    right: tuple[str, ...]
    near: tuple[str, ...] = ()
    blurred: frozenset[str] = frozenset()


@dataclass(slots=True)
class RouteSet:
    """Routes that belong to one product, each in several wordings, and the conversations labelled with them.

    `weight` is how often the set is drawn for a batch, relative to the others.
    """

    name: str
    topic: str
    routes: dict[str, list[Wording]]
    samples: list[Sample] = field(default_factory=list)
    weight: float = 1.0


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, gzipped or not."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in raw.decode("utf-8").split("\n") if line]


def read_turns(messages: list[dict[str, Any]]) -> tuple[Turn, ...]:
    """OpenAI messages as turns."""
    return tuple(_turn(message["role"], message["content"]) for message in messages)


def _turn(role: str, content: str | list[dict[str, Any]] | None) -> Turn:
    if not isinstance(content, list):
        return Turn(role, content or "")
    kinds = {"image_url": "image", "file": "file", "input_audio": "audio"}
    texts = [part["text"] for part in content if part["type"] == "text"]
    return Turn(role, "\n".join(texts), tuple(kinds[part["type"]] for part in content if part["type"] in kinds))


def load_written(folder: Path, split: str) -> list[RouteSet]:
    """The written route sets of one split (train, calibrate, unseen or languages).

    A set that is `areas_of` another has broad routes, each of which covers some of the other's, and its conversations.
    """
    sets: dict[str, RouteSet] = {}
    areas: dict[str, list[tuple[str, dict[str, str]]]] = defaultdict(list)
    for row in read_lines(folder / "route_sets.jsonl"):
        if row["split"] == split:
            routes = {r["wordings"][0]["name"]: [(w["name"], w["description"]) for w in r["wordings"]] for r in row["routes"]}
            sets[row["set"]] = RouteSet(row["set"], row["topic"], routes, weight=row.get("weight", 1.0))
            if "areas_of" in row:
                area = {covered: r["wordings"][0]["name"] for r in row["routes"] for covered in r["covers"]}
                areas[row["areas_of"]].append((row["set"], area))
    for row in read_lines(folder / "conversations.jsonl"):
        if row["set"] in sets:
            right = () if row["route"] == OTHER else (row["route"], *row["also"])
            turns = read_turns(row["messages"])
            sets[row["set"]].samples.append(Sample(turns, right))
            for name, area in areas[row["set"]]:
                if all(route in area for route in right):
                    sets[name].samples.append(Sample(turns, tuple(dict.fromkeys(area[route] for route in right))))
    return list(sets.values())


def load_padding(folder: Path) -> Padding:
    """What is written around requests in training."""
    banks = json.loads((folder / "padding.json").read_text(encoding="utf-8"))
    return Padding(**{name: tuple(bank) for name, bank in banks.items()})


def load_sgd(folder: Path, split: str = "train", leave: frozenset[str] = frozenset()) -> RouteSet:
    """Schema-Guided Dialogue as one big route set; each user turn with its history is a sample.

    `leave` are the ids of dialogues to leave out.
    """
    schema = json.loads((folder / f"schema_{split}.json").read_text(encoding="utf-8"))
    routes: dict[str, list[Wording]] = {}
    for service, about in schema["base"].items():
        for intent, description in about["intents"].items():
            wordings = [(f"{service}.{intent}", description)]
            for other in schema["rewordings"].get(service, []):
                wordings.append((f"{service}.{other[intent]['name']}", other[intent]["description"]))
            routes[f"{service}/{intent}"] = wordings
    sgd = RouteSet("sgd", "task dialogues", routes)
    for dialogue in read_lines(folder / f"{split}.jsonl.gz"):
        if dialogue["id"] in leave:
            continue
        domains = {service.split("_")[0] for service in dialogue["services"]}
        near = tuple(r for r in routes if r.split("/")[0] in dialogue["services"])
        blurred = frozenset(r for r in routes if r.split("_")[0] in domains)
        turns = [Turn(turn["role"], turn["content"]) for turn in dialogue["turns"]]
        for i, turn in enumerate(dialogue["turns"]):
            if turn["role"] == "user" and turn["intents"]:
                sgd.samples.append(Sample(tuple(turns[: i + 1]), tuple(turn["intents"]), near, blurred))
    return sgd


def words_in(written: Sequence[RouteSet], sgd: RouteSet) -> list[str]:
    """Words that are surely no slips of the keyboard, the most frequent first: those said or described several times."""
    said = Counter(word for routes in written for word in _words(routes))
    said += Counter({word: count // 4 for word, count in Counter(_words(sgd)).items()})
    return [word for word, count in sorted(said.items(), key=lambda pair: (-pair[1], pair[0])) if count > 1 and len(word) > 3]


def _words(routes: RouteSet) -> Iterator[str]:
    texts = [text for wordings in routes.routes.values() for _, text in wordings for _ in range(2)]
    texts += [sample.turns[-1].text for sample in routes.samples]
    return (word.lower() for text in texts if text.isascii() for word in re.findall(r"[A-Za-z]+", text))


SNIPS: dict[str, list[Wording]] = {
    "PlayMusic": [
        ("PlayMusic", "Play a song, an album, an artist or a playlist."),
        ("start_music", "The user wants to listen to something on a music service"),
        ("music_playback", "put on music by name, artist, year or service"),
    ],
    "AddToPlaylist": [
        ("AddToPlaylist", "Add a song or an artist to one of the user's playlists."),
        ("playlist_editing", "Only when something has to be put into a playlist that exists"),
        ("save_track", "user wants a tune, album or artist added to a list of music"),
    ],
    "GetWeather": [
        ("GetWeather", "Weather forecasts and conditions for a place and a time."),
        ("forecast", "Will it rain, snow, be hot, windy or cold somewhere"),
        ("weather", "anything about the sky, temperature and storms"),
    ],
    "BookRestaurant": [
        ("BookRestaurant", "Reserve a table at a restaurant."),
        ("table_reservation", "The user wants seats for a number of people at a place to eat or drink"),
        ("dining_booking", "book a spot at a bar, brasserie, diner or food truck"),
    ],
    "RateBook": [
        ("RateBook", "Give a book a number of stars or points."),
        ("book_review", "The user states how many points some reading material deserves"),
        ("rating", "record the user's score for a novel, essay, saga or textbook"),
    ],
    "SearchCreativeWork": [
        ("SearchCreativeWork", "Find a named creative work: a show, a game, a song, a painting, a book."),
        ("find_media", "The user looks for a particular work by title, whatever its kind"),
        ("title_lookup", "search for a TV series, video game, album, trailer or saga by its name"),
    ],
    "SearchScreeningEvent": [
        ("SearchScreeningEvent", "Find when and where films are shown in cinemas."),
        ("movie_schedule", "Showtimes and film schedules of theatres nearby"),
        ("cinema_times", "which movies are playing in the area and at what time"),
    ],
}


def load_snips(path: Path) -> RouteSet:
    """SNIPS with descriptions written here."""
    snips = RouteSet("snips", "voice assistant", SNIPS)
    for row in read_lines(path):
        snips.samples.append(Sample((Turn("user", row["text"].strip()),), (row["label"],)))
    return snips
