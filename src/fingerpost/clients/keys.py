"""Client keys: made at random, kept as hashes, found by what a request presents."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from hashlib import sha256

from fingerpost.clients import Client
from fingerpost.errors import Refused

PREFIX = "fp-"
"""What every key begins with, so that scanners for leaked secrets can tell one."""

HASH = re.compile(r"sha256:[0-9a-f]{64}")

_HEADERS = frozenset({b"authorization", b"api-key", b"x-api-key"})
_WANTED = "send one as `Authorization: Bearer fp-...` (or in the header api-key)"


def new_key() -> str:
    """A new key: `fp-` and 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """What is kept of a key: `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{sha256(key.encode()).hexdigest()}"


class Keys:
    """The clients by the hashes of their keys."""

    def __init__(self, clients: Mapping[str, Client]) -> None:
        digests = ((bytes.fromhex(hash_.removeprefix("sha256:")), client) for hash_, client in clients.items())
        self._clients = {digest[:8]: (digest, client) for digest, client in digests}

    def find(self, headers: Iterable[tuple[bytes, bytes]]) -> Client:
        """The client whose key is among these headers (names in lower case).

        Hashes are looked up by their first 64 bits and compared whole in constant time. How long either takes may
        tell something of a hash, but nothing of the key that it was made from.

        Raises:
            Refused: 401, there is no key, or none that is known.
        """
        presented = False
        for name, value in headers:
            if name in _HEADERS:
                presented = True
                digest = sha256(_bare(value)).digest()
                known = self._clients.get(digest[:8])
                if known is not None and hmac.compare_digest(known[0], digest):
                    return known[1]
        raise Refused.unknown(f"this key is not known; {_WANTED}" if presented else f"a key is needed; {_WANTED}")


def _bare(value: bytes) -> bytes:
    """The key in a header's value, with or without `Bearer` before it."""
    return value[7:].strip() if value[:7].lower() == b"bearer " else value
