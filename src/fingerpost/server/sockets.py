"""Sockets for several processes on one port."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

SPREADS = sys.platform == "linux"
"""Whether the system spreads connections over all sockets that listen on one port."""

Sockets = Sequence[socket.socket]
"""A socket for each address of a host."""


def bind(opened: ExitStack, host: str, port: int, copies: int = 1) -> list[Sockets]:
    """So many times a socket for every address of a host, all on one port; none of them listens yet."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[list[socket.socket]] = [[] for _ in range(copies)]
    for family, kind, protocol, _, address in dict.fromkeys(found):
        if port:
            refuse_taken(family, (address[0], port, *address[2:]))
        for copy in bound:
            if copy is not bound[0] and not SPREADS:
                copy.append(bound[0][-1])
                continue
            copy.append(opened.enter_context(socket.socket(family, kind, protocol)))
            copy[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if SPREADS:
                copy[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                copy[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            copy[-1].bind((address[0], port, *address[2:]))
            port = copy[-1].getsockname()[1]
    return list(bound)


def refuse_taken(family: int, address: tuple[Any, ...]) -> None:
    """Raises OSError where somebody listens already: SO_REUSEPORT would let two servers of one user share a port unasked."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(address)
