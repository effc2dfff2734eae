from __future__ import annotations

import re
from collections import Counter

import pytest

from fingerpost.clients import Client
from fingerpost.clients.keys import HASH, Keys, hash_of, new_key
from fingerpost.errors import Refused

KEY, OTHER = new_key(), new_key()
KEYS = Keys({hash_of(KEY): Client("team"), hash_of(OTHER): Client("other team")})


def test_a_key_has_256_random_bits_and_a_beginning_that_scanners_know() -> None:
    keys = {new_key() for _ in range(200)}
    assert len(keys) == 200
    assert all(re.fullmatch(r"fp-[A-Za-z0-9_-]{43}", key) for key in keys)
    assert len(Counter("".join(keys)).keys()) == 64


def test_what_is_kept_of_a_key_is_its_sha_256() -> None:
    assert hash_of("fp-x") == "sha256:7036f324b29d5c4df173b99d4af5a9a3441f38d7c6290d8d1aa9cf325a38ba93"
    assert HASH.fullmatch(hash_of(KEY))
    assert KEY not in hash_of(KEY)


@pytest.mark.parametrize("header", [
    (b"authorization", f"Bearer {KEY}".encode()),
    (b"authorization", f"bearer {KEY}".encode()),
    (b"authorization", f"BEARER  {KEY} ".encode()),
    (b"api-key", KEY.encode()),
    (b"x-api-key", KEY.encode()),
])  # fmt: skip
def test_a_key_is_found_in_the_headers_that_clients_send(header: tuple[bytes, bytes]) -> None:
    assert KEYS.find([(b"host", b"x"), header]).name == "team"


def test_each_key_finds_its_own_client() -> None:
    assert KEYS.find([(b"api-key", OTHER.encode())]).name == "other team"


def test_any_of_several_keys_will_do() -> None:
    assert KEYS.find([(b"authorization", b"Bearer sk-of-another-gateway"), (b"api-key", KEY.encode())]).name == "team"


@pytest.mark.parametrize("value", [
    b"", b"Bearer", b"Bearer ", KEY.encode()[:-1], KEY.encode() + b"x", f"Basic {KEY}".encode(), KEY.encode().upper(),
    hash_of(KEY).encode(), bytes.fromhex(hash_of(KEY)[7:]), b"\xff" * 40,
])  # fmt: skip
def test_anything_else_is_401_and_is_not_quoted(value: bytes) -> None:
    with pytest.raises(Refused) as refused:
        KEYS.find([(b"authorization", value)])
    assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
    assert "not known" in refused.value.message
    assert KEY[:-1] not in refused.value.message


@pytest.mark.parametrize("headers", [[], [(b"host", b"x")], [(b"cookie", KEY.encode())], [(b"x-fingerpost-key", KEY.encode())]])
def test_no_key_is_401_that_says_where_to_put_one(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Refused, match=r"a key is needed; send one as `Authorization: Bearer fp-"):
        KEYS.find(headers)
