"""Sockets for several processes on one port."""

from __future__ import annotations

import socket
from contextlib import ExitStack, closing

import pytest

from fingerpost.server.sockets import bind, refuse_taken


def test_a_name_with_several_addresses_is_one_port_on_all_of_them() -> None:
    with ExitStack() as opened:
        bound = bind(opened, "localhost", 0, 2)
        assert len({one.getsockname()[1] for copy in bound for one in copy}) == 1
        assert len({one.getsockname()[0] for copy in bound for one in copy}) == len(bound[0]) == len(bound[1])


def test_a_port_that_another_server_listens_at_is_refused_though_it_would_share() -> None:
    with ExitStack() as opened, closing(socket.socket()) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use"):
            bind(opened, *other.getsockname())
        other.close()
        [[bound]] = bind(opened, "127.0.0.1", 0)
        refuse_taken(bound.family, bound.getsockname())
