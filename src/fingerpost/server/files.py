"""Files that a serving process follows: the configuration, the certificate; and how it notices that they change."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fingerpost import config
from fingerpost.assemble import World, build_world
from fingerpost.config import Loaded
from fingerpost.config.access import TlsConfig
from fingerpost.config.file import read_text
from fingerpost.errors import ConfigError, Problem

Looks = tuple[tuple[int, int, int] | None, ...]
"""What changes when a file does, for each of some files; None for one that is not there."""


class Watch:
    """Notices when one of some files changes; `seen` is how they looked when they were last read."""

    def __init__(self, files: Sequence[str | Path], seen: Looks | None = None) -> None:
        self._files = tuple(files)
        self.seen = self._last = look(files) if seen is None else seen

    async def changed(self, *, asked: bool = False) -> bool:
        """Whether to read them again: because somebody `asked`, or because they have changed since.

        Files that have just changed may still be being written: they are read when they have stayed as they are for once.
        """
        looks = await asyncio.to_thread(look, self._files)
        wanted = asked or (looks != self.seen and looks == self._last)
        self._last = looks
        if wanted:
            self.seen = looks
        return wanted


def look(files: Sequence[str | Path]) -> Looks:
    """How some files look now."""
    return tuple(_look(file) for file in files)


def _look(file: str | Path) -> tuple[int, int, int] | None:
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class ConfigFile:
    """A configuration file, and what the command line says `instead` of keys of its server.

    `text` and `looks` are of when it was last read; where `text` is given, it is built from that first.
    """

    def __init__(self, path: Path, instead: Mapping[str, Any], text: str | None = None, looks: Looks = (None,)) -> None:
        self.path = path
        self.instead = instead
        self.text = text
        self.looks = looks

    def read(self) -> Loaded:
        """What the file says now.

        Raises:
            ConfigError: everything that is wrong with it.
        """
        self.looks = look([self.path])
        self.text = read_text(self.path)
        return self.parse(self.text)

    def parse(self, text: str) -> Loaded:
        """What the file said when that was its text."""
        loaded = config.load(self.path, text=text)
        server = loaded.config.server.model_copy(update=dict(self.instead))
        return Loaded(loaded.config.model_copy(update={"server": server}), loaded.file, loaded.warnings)

    def rebuild(self, previous: World) -> World:
        """The world that the file describes now, to follow another one; its warnings are told."""
        loaded = self.read()
        world = build_world(loaded.config, previous=previous)
        tell(loaded.warnings)
        return world


def tell(warnings: Sequence[Problem]) -> None:
    """Says on standard error what looks unwise."""
    for problem in warnings:
        print(f"warning: {problem}", file=sys.stderr, flush=True)


class Certificate:
    """The certificate that is served, with its key; `context` hands out the one of the last good files.

    Loading a pair into a context in use would leave half of it there when the other half turns out bad. So each pair gets a
    context of its own, and a new connection is moved to the latest one as it greets, with or without a server name in it.

    Raises:
        ConfigError: the certificate or its key cannot be used.
    """

    def __init__(self, settings: TlsConfig) -> None:
        self._settings = settings
        self.watch = Watch([settings.cert, settings.key])
        self.context = self._latest = build_tls(settings)
        self.context.sni_callback = self._greet

    def renew(self) -> None:
        """Serves what is in the files now to connections that come from now on.

        Raises:
            ConfigError: it cannot be used; what was served before stays.
        """
        self._latest = build_tls(self._settings)

    def _greet(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._latest


def build_tls(settings: TlsConfig) -> ssl.SSLContext:
    """What a server with this certificate needs: TLS 1.2 and later.

    Raises:
        ConfigError: the certificate or its key cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name, file in (("cert", settings.cert), ("key", settings.key)):
        try:
            with open(file, "rb") as opened:
                content = opened.read()
        except OSError as error:
            raise _bad_tls(name, f"{file} cannot be read ({error.strerror})", "Check the path and its permissions") from None
        if b"-----BEGIN " not in content:
            raise _bad_tls(name, f"{file} holds no PEM", "PEM begins with -----BEGIN; DER has to be converted")
    try:
        context.load_cert_chain(settings.cert, settings.key, password=lambda: "")
    except OSError as error:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            what = f"{settings.key} does not belong to {settings.cert}"
            raise _bad_tls("key", what, "Give the key of that certificate") from None
        reason = (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or "cut off, or a password"
        what = f"{settings.cert} and {settings.key} cannot be used ({reason})"
        raise _bad_tls("cert", what, "Both have to be whole and in PEM, the key without a password") from None
    return context


def _bad_tls(name: str, what: str, fix: str) -> ConfigError:
    return ConfigError([Problem(f"server.tls.{name}", what, fix)])
