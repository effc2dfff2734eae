"""What a serving world needs beside requests: its backends are asked whether they live, its files are followed."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from fingerpost.assemble import World, conceal_options
from fingerpost.config.shape import Config, ServerConfig
from fingerpost.errors import FingerpostError
from fingerpost.server.auth import check_exposure
from fingerpost.server.files import Certificate, Looks, Watch
from fingerpost.upstreams.guarded import Guarded

Rebuild = Callable[[World], World]
"""Builds the world that the configuration file describes now, to follow the one that is given."""

FIXED = ("host", "port", "workers", "tls", "admin", "connections", "request_timeout")
"""Keys of the server that a reload cannot change: the socket is open."""

_log = logging.getLogger("fingerpost.server")


class Upkeep:
    """Holds the world that is served now and keeps it up to date: requests read `world` once, when they begin.

    A reload builds a second world, gets it ready and puts it in the place of the first, which is closed when its requests are
    over, or `server.drain` seconds later. What cannot be loaded changes nothing: the last good world stays, and so does the
    last good `certificate`. The files are looked at `every` so many seconds.

    One of several workers has a `number`, tells the others' parent what it has `taken` up, and has its metrics `summed` up
    with theirs. `seen` is how the configuration file looked when the first world was read from it.
    """

    def __init__(
        self,
        world: World,
        file: Path | None = None,
        rebuild: Rebuild | None = None,
        every: float = 1.0,
        *,
        seen: Looks | None = None,
    ) -> None:
        self.world = world
        self.file = file
        self.failed = self.certificate_failed = False
        self.certificate: Certificate | None = None
        self.number: int | None = None
        self.taken: Callable[[], None] = lambda: None
        self.summed: Callable[[bytes], Awaitable[bytes]] | None = None
        self._watch = Watch([file] if file else [], seen)
        self._rebuild = rebuild
        self._every = every
        self._asked = asyncio.Event()
        self._retiring: list[World] = []

    def ask(self) -> None:
        """Asks for a reload, as SIGHUP does, whether or not the files have changed."""
        self._asked.set()

    def detail(self) -> dict[str, object]:
        """What administrators are told of it."""
        failed = "the last reload failed; the log says why"
        told: dict[str, object] = {"config": failed if self.failed else "ok"}
        if self.certificate is not None:
            told["certificate"] = failed if self.certificate_failed else "ok"
        if self.number is not None:
            told["worker"] = self.number
        return told

    async def keep(self) -> None:
        """Works until it is cancelled; whatever it has started is over then."""
        async with asyncio.TaskGroup() as group:
            probing = group.create_task(_probe_all(self.world))
            while (self._rebuild and self.file) or self.certificate:
                asked = await self._wait()
                if not (asked or self.world.config.server.reload):
                    continue
                if self.certificate and await self.certificate.watch.changed(asked=asked):
                    await self._renew(self.certificate)
                if self._rebuild and self.file and await self._watch.changed(asked=asked):
                    old = await self._reload(self._rebuild)
                    if old is not None:
                        probing.cancel()
                        probing = group.create_task(_probe_all(self.world))
                        group.create_task(self._retire(old))

    async def _wait(self) -> bool:
        """Waits until it is time to look at the files again; true if somebody asked for a reload."""
        try:
            async with asyncio.timeout(self._every):
                await self._asked.wait()
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _renew(self, certificate: Certificate) -> None:
        """Serves the certificate that is in the files now, if it can be used."""
        try:
            await asyncio.to_thread(certificate.renew)
            self.certificate_failed = False
            print("fingerpost serves a renewed certificate", file=sys.stderr, flush=True)
        except FingerpostError as error:
            self.certificate_failed = True
            _log.error("the certificate was not renewed, the last good one stays: %s", error.message)
        self.world.metrics.renewed(ok=not self.certificate_failed)

    async def _reload(self, rebuild: Rebuild) -> World | None:
        """Puts a new world in the place of the old one, which it returns, or None when it could not."""
        old = self.world
        try:
            read = await asyncio.to_thread(rebuild, old)
            # Who may come in is judged by the socket that is open, not by the one that the file speaks of now.
            new = replace(read, config=keep_fixed(read.config, old.config.server))
            try:
                check_exposure(new.config)
                await _prepare(new)
            except BaseException:
                await new.gateway.aclose(keep=tuple(old.upstreams.values()))
                raise
        except Exception as error:  # a wrong file, or a model or plugin of the operator's that does not load
            self.failed = True
            old.metrics.reloaded(ok=False)
            told = error.message if isinstance(error, FingerpostError) else f"{type(error).__name__}: {error}"
            _log.error("%s was not reloaded, the last good configuration stays: %s", self.file, told)
            return None
        for key in FIXED:
            if getattr(read.config.server, key) != getattr(old.config.server, key):
                _log.warning("server.%s has changed in %s; that takes a restart", key, self.file)
        self.world, self.failed = new, False
        new.metrics.reloaded(ok=True)
        print(f"fingerpost reloaded {self.file}", file=sys.stderr, flush=True)
        self.taken()
        return old

    async def _retire(self, world: World) -> None:
        """Closes a world when its requests are over, or their time is, but for what other worlds use too."""
        self._retiring.append(world)
        try:
            async with asyncio.timeout(world.config.server.drain):
                while world.gateway.in_flight:  # noqa: ASYNC110  (requests tell nobody that they end; nobody else waits for it)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            _log.warning("requests of before the reload are cut: they took longer than server.drain")
            world.gateway.cut()
            await asyncio.sleep(0)  # they let go of their backends before these are closed
        finally:
            self._retiring.remove(world)
            used = [upstream for one in (self.world, *self._retiring) for upstream in one.upstreams.values()]
            await world.gateway.aclose(keep=used)
            if world.ledger not in [one.ledger for one in (self.world, *self._retiring)]:
                await world.ledger.aclose()


def keep_fixed(config: Config, server: ServerConfig) -> Config:
    """A configuration whose keys that a reload cannot change are those of `server`."""
    kept = {key: getattr(server, key) for key in FIXED}
    return config.model_copy(update={"server": config.server.model_copy(update=kept)})


async def _prepare(world: World) -> None:
    try:
        await world.gateway.router.prepare()
    except Exception as error:
        why = conceal_options(f"{type(error).__name__}: {error}", world.config)
        raise FingerpostError(f"the classifier cannot start: {why}") from None


async def _probe_all(world: World) -> None:
    async with asyncio.TaskGroup() as group:
        for upstream in world.upstreams.values():
            if upstream.guard.backend.probe is not None:
                group.create_task(_probe(upstream, upstream.guard.backend.probe.every))


async def _probe(upstream: Guarded, every: float) -> None:
    while True:
        try:
            await upstream.probe()
        except Exception as error:  # a defect of an upstream must not end the server
            _log.error("the probe of %s failed: %s", upstream.guard.backend.name, type(error).__name__)
        await asyncio.sleep(every)
