"""The serving process: uvicorn around the app, with an orderly end."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn

from fingerpost.assemble import World
from fingerpost.server.app import App
from fingerpost.server.upkeep import Upkeep

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than clients keep theirs (5 s to 60 s), or one of theirs would now and then
meet a connection that is just being closed."""


class Server(uvicorn.Server):
    """A server that says where it listens, and ends without raising the signal again that asked it to stop."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen; the port that it says is the real one where 0 was configured."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        print(f"fingerpost listens on http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets running requests finish; a second Ctrl-C cuts them, but even then the gateway is closed in order."""
        if isinstance(self.config.app, App):
            self.config.timeout_graceful_shutdown = _drain(self.config.app.world)  # a reload may have changed it
        await super().shutdown(sockets)
        running = tuple(self.server_state.tasks)
        for task in running if self.force_exit else ():
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=1)
        if self.force_exit:
            await self.lifespan.shutdown()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Asks the server to stop on SIGTERM and Ctrl-C, to reload on SIGHUP.

        Only the main thread gets signals; elsewhere set `should_exit`.
        """
        actions: dict[int, Callable[[], None]] = {}
        if threading.current_thread() is threading.main_thread():
            actions = {number: partial(self.handle_exit, number, None) for number in (signal.SIGINT, signal.SIGTERM)}
            if isinstance(self.config.app, App) and self.config.app.upkeep.file:
                actions[signal.SIGHUP] = self.config.app.upkeep.ask
        loop = asyncio.get_running_loop()
        for number, action in actions.items():
            loop.add_signal_handler(number, action)
        try:
            yield
        finally:
            for number in actions:
                loop.remove_signal_handler(number)


def build_server(world: World, upkeep: Upkeep | None = None) -> Server:
    """A server for one world; `run` serves until a signal, or `should_exit`, asks it to stop."""
    return Server(
        uvicorn.Config(
            App(world, upkeep=upkeep),
            host=world.config.server.host,
            port=world.config.server.port,
            http="httptools",
            loop="uvloop",
            ws="none",
            lifespan="on",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            log_level="warning",
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=_drain(world),
        )
    )


def _drain(world: World) -> int:
    return max(1, round(world.config.server.drain))


def serve(world: World, upkeep: Upkeep | None = None) -> int:
    """Serves until SIGTERM or Ctrl-C, lets running requests finish within `server.drain` seconds, and returns 0.

    With an `upkeep` that knows the configuration file, SIGHUP and a change of the file put another world in the place of this.
    Returns 1 when the server could not start, for example because the port is taken.
    """
    try:
        build_server(world, upkeep).run()
    except SystemExit:  # uvicorn's word for a failed start; it has logged the cause
        where = f"{world.config.server.host}:{world.config.server.port}"
        print(f"fingerpost could not start on {where}; --host and --port take another address", file=sys.stderr)
        return 1
    return 0
