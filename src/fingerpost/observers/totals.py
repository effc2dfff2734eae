"""Metrics of several processes added up, in Prometheus's text format. Pure functions from text to text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

LEAST = frozenset({"fingerpost_config_last_reload_ok", "fingerpost_certificate_last_reload_ok"})
"""Gauges that are as low as the lowest: all is well where it is well in every process."""

MOST = frozenset({"fingerpost_circuit_state"})
"""Gauges that are as high as the highest: a circuit is open where it is open in one process."""


@dataclass(slots=True)
class _Family:
    """The samples of one metric, by name and labels."""

    help: str
    kind: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)


def total(texts: Iterable[str]) -> str:
    """What several processes report, as if one process had counted it all."""
    families = _read(texts)
    return "".join(_written(family, _way(name)) for name, family in families.items())


def lasting(text: str) -> str:
    """What is left of a process's metrics when it is gone: what it counted, and nothing of how it fared."""
    return "".join(_written(family, sum) for family in _read([text]).values() if family.kind != "gauge")


def _read(texts: Iterable[str]) -> dict[str, _Family]:
    families: dict[str, _Family] = {}
    for text in texts:
        family = _Family("")
        for line in text.split("\n"):
            if line.startswith("# HELP "):
                family = families.setdefault(line.split(" ", 3)[2], _Family(line))
            elif line.startswith("# TYPE "):
                family.kind = line.split(" ", 3)[3]
            elif line:
                series, _, value = line.rpartition(" ")
                family.samples.setdefault(series, []).append(float(value))
    return families


def _way(name: str) -> Callable[[Sequence[float]], float]:
    return min if name in LEAST else max if name in MOST else sum


def _written(family: _Family, way: Callable[[Sequence[float]], float]) -> str:
    name = family.help.split(" ", 3)[2]
    lines = [family.help, f"# TYPE {name} {family.kind}"]
    lines += [f"{series} {way(values)!r}" for series, values in family.samples.items()]
    return "\n".join(lines) + "\n"
