"""The serving process: uvicorn around the app, with an orderly end."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn

from fingerpost.assemble import World
from fingerpost.config.access import TlsConfig
from fingerpost.errors import ConfigError, Problem
from fingerpost.server.app import App
from fingerpost.server.auth import check_exposure
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
        self._admin = admin
        self._request_timeout = request_timeout
        self.listening = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen; the port that it says is the real one where 0 was configured."""
        await super().startup(sockets)
        self._say("fingerpost listens", 0)
        if self._admin is not None:
            await self._listen_to_administrators(self._admin)
            self._say("its administrators' port", 1)
        self.listening = True
        # What is there now stays: the collector need not go through it again and again, or after every few hundred new objects.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop. Once a second, ends connections whose request does not come in."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in tuple(self.server_state.connections):
                if isinstance(connection, ClientConnection):
                    connection.expire(now, self._request_timeout)
        return await super().on_tick(counter)

    async def _listen_to_administrators(self, admin: uvicorn.Config) -> None:
        def accept() -> Any:
            return admin.http_protocol_class(config=admin, server_state=self.server_state, app_state={})  # type: ignore[call-arg]

        try:
            listening = await asyncio.get_running_loop().create_server(accept, admin.host, admin.port, ssl=self.config.ssl)
        except OSError as error:
            print(f"server.admin: cannot listen on {admin.host}:{admin.port}: {error.strerror}", file=sys.stderr)
            await self.shutdown()
            sys.exit(1)
        self.servers.append(listening)

    def _say(self, what: str, place: int) -> None:
        host, port = self.servers[place].sockets[0].getsockname()[:2]
        scheme = "https" if self.config.ssl else "http"
        print(f"{what} on {scheme}://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr, flush=True)

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
    """A server for one world; `run` serves until a signal, or `should_exit`, asks it to stop.

    Raises:
        ConfigError: it would serve whoever reaches it without being told so.
    """
    check_exposure(world.config)
    settings, app = world.config.server, App(world, upkeep=upkeep)
    config = _uvicorn_config(world, app, app.serve, settings.host, settings.port)
    if settings.tls is not None:
        config.ssl = build_tls(settings.tls)
    admin = None
    if settings.admin is not None and settings.admin.port is not None:
        admin = _uvicorn_config(world, app, app.serve_admin, settings.admin.host, settings.admin.port)
    return Server(config, admin, settings.request_timeout)


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


def build_tls(config: TlsConfig) -> ssl.SSLContext:
    """What a server with this certificate needs: TLS 1.2 and later.

    Raises:
        ConfigError: the certificate or its key cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name, file in (("cert", config.cert), ("key", config.key)):
        try:
            with open(file, "rb") as opened:
                content = opened.read()
        except OSError as error:
            raise _bad_tls(name, f"{file} cannot be read ({error.strerror})", "Check the path and its permissions") from None
        if b"-----BEGIN " not in content:
            raise _bad_tls(name, f"{file} holds no PEM", "PEM begins with -----BEGIN; DER has to be converted")
    try:
        context.load_cert_chain(config.cert, config.key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise _bad_tls(
                "key", f"{config.key} does not belong to {config.cert}", "Give the key of that certificate"
            ) from None
        what = f"{config.cert} and {config.key} cannot be used ({error.reason or 'the key asks for a password'})"
        raise _bad_tls("cert", what, "Both have to be whole and in PEM, the key without a password") from None
    return context


def _bad_tls(name: str, what: str, fix: str) -> ConfigError:
    return ConfigError([Problem(f"server.tls.{name}", what, fix)])


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
