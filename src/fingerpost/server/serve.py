"""The serving process: uvicorn around the app, with an orderly end."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import uvicorn

from fingerpost.assemble import World
from fingerpost.config.shape import Config
from fingerpost.server.app import App
from fingerpost.server.auth import check_exposure
from fingerpost.server.files import Certificate
from fingerpost.server.protocol import ClientConnection
from fingerpost.server.request import Request
from fingerpost.server.upkeep import Upkeep


class Server(uvicorn.Server):
    """A server that says where it listens, and ends without raising the signal again that asked it to stop.

    `admin` is what is served to administrators on a port of their own; a request may take `request_timeout` seconds to come in.
    `listening` is true when all ports are open.
    """

    def __init__(self, config: uvicorn.Config, admin: uvicorn.Config | None = None, request_timeout: float = 60.0) -> None:
        super().__init__(config)
        self.admin = admin
        self._request_timeout = request_timeout
        self.listening = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen; the port that it says is the real one where 0 was configured."""
        await super().startup(sockets)
        self._say("fingerpost listens", 0)
        if self.admin is not None:
            try:
                await self.listen(self.admin, host=self.admin.host, port=self.admin.port)
            except OSError as error:
                where = f"{self.admin.host}:{self.admin.port}"
                print(f"server.admin: cannot listen on {where}: {error.strerror}", file=sys.stderr)
                await self.shutdown()
                sys.exit(1)
            self._say("its administrators' port", 1)
        self.listening = True
        settle()

    async def listen(self, config: uvicorn.Config, **where: Any) -> asyncio.Server:
        """Takes connections there too, for what a configuration serves, until what it returns is closed."""

        def accept() -> Any:
            return config.http_protocol_class(config=config, server_state=self.server_state, app_state={})  # type: ignore[call-arg]

        loop = asyncio.get_running_loop()
        listening = await loop.create_server(accept, ssl=self.config.ssl, backlog=config.backlog, **where)
        self.servers.append(listening)
        return listening

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop. Once a second, ends connections whose request does not come in."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in tuple(self.server_state.connections):
                if isinstance(connection, ClientConnection):
                    connection.expire(now, self._request_timeout)
        return await super().on_tick(counter)

    def _say(self, what: str, place: int) -> None:
        say(what, self.servers[place].sockets[0], secure=self.config.ssl is not None)

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
        with on_signals(actions):
            yield


Kind = TypeVar("Kind", bound=Server)


def build_server(world: World, upkeep: Upkeep | None = None, make: type[Kind] = Server) -> Kind:  # type: ignore[assignment]
    """A server of some kind for one world; `run` serves until a signal, or `should_exit`, asks it to stop.

    Raises:
        ConfigError: it would serve whoever reaches it without being told so.
    """
    check_exposure(world.config)
    settings, app = world.config.server, App(world, upkeep=upkeep)
    config = _uvicorn_config(world, app, app.serve, settings.host, settings.port)
    if settings.tls is not None:
        app.upkeep.certificate = Certificate(settings.tls)
        config.ssl = app.upkeep.certificate.context
    admin = None
    if settings.admin is not None and settings.admin.port is not None:
        admin = _uvicorn_config(world, app, app.serve_admin, settings.admin.host, settings.admin.port)
    return make(config, admin, settings.request_timeout)


def _uvicorn_config(
    world: World, app: App, serve: Callable[[Request], Awaitable[None]], host: str, port: int
) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=partial(ClientConnection, serve=serve, most=world.config.server.connections),  # type: ignore[arg-type]
        loop="uvloop",
        ws="none",
        lifespan="on",
        interface="asgi3",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        log_level="warning",
        timeout_graceful_shutdown=_drain(world),
    )
    config.load()
    return config


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
        return could_not_start(world.config)
    return 0


def could_not_start(config: Config) -> int:
    """Says that the address cannot be served at; 1, the exit code for that."""
    where = f"{config.server.host}:{config.server.port}"
    print(f"fingerpost could not start on {where}; --host and --port take another address", file=sys.stderr)
    return 1


def settle() -> None:
    """Tells the collector that what is there now stays: it need not go through it again and again, or after every few hundred
    new objects.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@contextmanager
def on_signals(actions: Mapping[int, Callable[[], None]]) -> Iterator[None]:
    """What the running loop does on signals, which may have been held back until now; for the main thread only."""
    loop = asyncio.get_running_loop()
    for number, action in actions.items():
        loop.add_signal_handler(number, action)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, actions)
    try:
        yield
    finally:
        for number in actions:
            loop.remove_signal_handler(number)


def say(what: str, listening: socket.socket, *, secure: bool) -> None:
    """Says on standard error where a socket listens."""
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"{what} on {'https' if secure else 'http'}://{shown}:{port}", file=sys.stderr, flush=True)
