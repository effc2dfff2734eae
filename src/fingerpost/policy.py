"""The choice: constraints, a verdict and a route table in, one decision out. Pure; no I/O, no clock, no state."""

from __future__ import annotations

from collections.abc import Iterable

from fingerpost.chat import Needs
from fingerpost.errors import FingerpostError, NothingFits, Refused, UnknownModel
from fingerpost.records import Constraint, Decision, Verdict
from fingerpost.routes import AUTO, EVERYTHING, OTHER, Access, Backend, RouteTable

OPT_IN_FEATURES = frozenset({"video", "file"})
"""Features that few configurations state: they strike a backend out only where another one says that it accepts them."""

KEPT_FROM_KEY = "is not allowed for this key"


def choose(
    table: RouteTable, needs: Needs, verdict: Verdict | None, why_no_verdict: str = "", access: Access = EVERYTHING
) -> Decision:
    """The decision for a request that asks for one (`model: auto`).

    The most probable route wins where it reaches its threshold; else, and without a verdict, `other`. When constraints or
    the client's access strike out all backends of that route, the next best route's backends serve it, and the reason says so.

    Raises:
        NothingFits: no backend of any route can serve the request.
        Refused: none that could is within the client's access.
    """
    route, reason = _believed(table, verdict, why_no_verdict)
    constraints = find_constraints(table, needs, access=access)
    struck = {constraint.backend for constraint in constraints}
    backends = _left(table, route, struck, access)
    if table.backends and not backends:
        order = sorted(table.routes, key=lambda r: -verdict.probabilities.get(r.name, 0.0)) if verdict else table.routes
        lenders = ((lender.name, _left(table, lender.name, struck, access)) for lender in order)
        lender, backends = next((pair for pair in lenders if pair[1]), ("", ()))
        if not backends:
            raise _nothing_fits(constraints)
        why = _explain(constraints, table, route) if access.to_route(route) else f"the route {KEPT_FROM_KEY}"
        reason += f"; no backend of {route} can serve it ({why}), {lender}'s can"
    return Decision(
        route=route,
        backends=backends,
        reason=reason,
        source=verdict.source if verdict else "default",
        confidence=verdict.probabilities.get(route, 0.0) if verdict else None,
        verdict=verdict,
        constraints=constraints,
    )


def obey(table: RouteTable, needs: Needs, model: str, access: Access = EVERYTHING) -> Decision:
    """The decision for a request that names a route or a backend: that one and no other.

    Raises:
        UnknownModel: `model` is the name of neither.
        NothingFits: it is, but constraints strike out all that it stands for.
        Refused: it is, but the client's access does not cover it.
    """
    route: str | None = None
    if model in table.by_name:
        route, named, reason = model, table.backends_of(model), f"the request names the route {model}"
    elif model in table.backends:
        named, reason = (table.backends[model],), f"the request names the backend {model}"
    else:
        names = ", ".join(usable_names(table, access))
        raise UnknownModel(f"there is no model {model[:200]!r}; use one of: {names}", param="model")
    if access is not EVERYTHING and not (access.to_route(model) if route else access.to_backend(model)):
        raise Refused(f"the {'route' if route else 'backend'} {model} {KEPT_FROM_KEY}", param="model")
    constraints = find_constraints(table, needs, named, access)
    backends = named
    if constraints:
        struck = {constraint.backend for constraint in constraints}
        backends = tuple(backend for backend in named if backend.name not in struck)
        if not backends:
            raise _nothing_fits(constraints)
    return Decision(route, backends, reason, source="hint", constraints=constraints)


def usable_names(table: RouteTable, access: Access = EVERYTHING) -> list[str]:
    """The model names that a client with this access may ask for: `auto`, routes, backends."""
    routes = [name for name in table.by_name if access.to_route(name)]
    return [AUTO, *routes, *(name for name in table.backends if name not in table.by_name and access.to_backend(name))]


def find_constraints(
    table: RouteTable, needs: Needs, among: Iterable[Backend] | None = None, access: Access = EVERYTHING
) -> tuple[Constraint, ...]:
    """Which backends (of `among`, or of the whole table) cannot serve these needs of a client with this access, and why."""
    wanted: frozenset[str] = needs.features
    if not wanted.isdisjoint(OPT_IN_FEATURES):
        wanted -= (wanted & OPT_IN_FEATURES).difference(*(backend.accepts for backend in table.backends.values()))
    found: tuple[Constraint, ...] = ()
    for backend in table.backends.values() if among is None else among:
        context = backend.context
        if access is not EVERYTHING and not access.to_backend(backend.name):
            found += (Constraint(backend.name, KEPT_FROM_KEY),)
        elif not wanted <= backend.accepts:
            found += (Constraint(backend.name, f"does not accept {', '.join(sorted(wanted - backend.accepts))}"),)
        elif context is not None and needs.tokens > context:
            found += (Constraint(backend.name, f"about {needs.tokens} tokens do not fit into {context}"),)
    return found


def _believed(table: RouteTable, verdict: Verdict | None, why_not: str) -> tuple[str, str]:
    if verdict is None:
        return OTHER, f"{why_not or 'no verdict'}: the default route"
    suffix = f" ({verdict.note})" if verdict.note else ""
    route = verdict.route
    threshold = table.by_name[route].threshold if route in table.by_name else 0.0
    confidence = verdict.probabilities.get(route, 0.0)
    if confidence < threshold:
        reason = f"{verdict.source} is only {confidence:.0%} sure of {route}, which asks for {threshold:.0%}"
        return OTHER, reason + suffix
    return route, f"{verdict.source} is {confidence:.0%} sure" + suffix


def _left(table: RouteTable, route: str, struck: set[str], access: Access) -> tuple[Backend, ...]:
    if not access.to_route(route):
        return ()
    backends = table.backends_of(route)
    return tuple(backend for backend in backends if backend.name not in struck) if struck else backends


def _explain(constraints: Iterable[Constraint], table: RouteTable, route: str) -> str:
    own = {backend.name for backend in table.backends_of(route)}
    return "; ".join(f"{c.backend} {c.why}" for c in constraints if c.backend in own) or "it has none"


def _nothing_fits(constraints: Iterable[Constraint]) -> FingerpostError:
    reasons = "; ".join(f"{constraint.backend} {constraint.why}" for constraint in constraints)
    if all(constraint.why == KEPT_FROM_KEY for constraint in constraints):
        return Refused(f"no backend that can serve this request is allowed for this key: {reasons}", param="model")
    return NothingFits(f"no backend can serve this request: {reasons}", param="messages")
