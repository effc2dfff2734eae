"""The loader of configurations and of other routers' files: a valid result or our error, which quotes no secret."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fingerpost.config import load as load_config
from fingerpost.config import load_routes
from fingerpost.config.importers import KINDS, convert
from fingerpost.config.shape import to_backend, to_route
from fingerpost.errors import ConfigError

SECRET = "canary-8f3a61c2"
_ENVIRON = {"KEY": SECRET, "URL": "http://127.0.0.1:1", "N": "5"}
_SAMPLE = b"""
backends:
  - {name: small, model: m, url: "http://localhost:8000/v1", key: "${KEY}", accepts: [text, tools]}
  - name: strong
    model: big
    url: ${URL}
    price: {input: 1, output: 2}
    timeouts: {connect: 1}
    breaker: {failures: ${N:-3}}
routes:
  - name: hard
    description: A question.
    backends: [strong, small]
    threshold: 0.4
  - {name: other, backends: [small]}
rules:
  - {route: hard, keywords: [prove], image: false}
classifier: {use: chain, of: [embedded, {use: fixed, route: other}]}
server: {port: 0, max_body: 100, tls: null, retry_budget: {share: 0.1}}
keys:
  - {name: a, hash: "sha256:aa", routes: [hard], budget: {usd: 1, per: day}}
limits: {redis: "redis://localhost"}
"""
SEEDS = (
    b"c" + _SAMPLE,
    b"r" + b"- {name: a, description: A., examples: [x, y]}\n- name: other\n",
    b"l" + b"model_list:\n  - model_name: a\n    litellm_params: {model: openai/gpt-4o, api_key: os.environ/KEY}\n",
    b"s" + b"encoder_type: openai\nroutes:\n  - {name: a, utterances: [x, y], score_threshold: 0.5}\n",
    b"t" + b'[[targets]]\nname = "a"\nmodel = "m"\nbase_url = "http://x/v1"\n',
)
WORDS = (
    b"${KEY}", b"${URL}", b"${UNSET}", b"${UNSET:-x}", b"${", b"}", b"\n", b"  ", b"- ", b": ", b"{", b"[", b"]", b"'", b'"',
    b"|\n",
    b">\n", b"&a ", b"*a", b"<<: *a", b"!!str ", b"!!binary ", b"!!python/object/apply:os.abort []", b"? ", b"---\n",
    b"...\n", b"#",
    b"%YAML 1.2\n", b"null", b"true", b"yes", b".nan", b".inf", b"-1", b"1e999", b"0x10", b"1_000", b"2024-10-21", b"12:30:45",
    b"backends:", b"routes:", b"name:", b"model:", b"url:", b"key:", b"accepts:", b"classifier:", b"use:", b"of:", b"server:",
    b"rules:", b"keys:", b"limits:", b"embedded", b"fixed", b"chain", b"arch", b"systemone", b"rules", b"other", b"image",
    b"http://",
    b"https://u:p@h/", b"http://[::1", b"http://\xc3\xa9", b"unix://x", b"\t", b"\xff", b"\xf0\x9f\x98\x80",
    b"\\ud83d\\ude00", b"\0",
    b"999999999999999999999999", b"model_list:", b"litellm_params:", b"os.environ/KEY", b"utterances:", b"[[targets]]",
    b"headers:",
)  # fmt: skip
LONGEST = 3072

_folder = tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True)
_KINDS = {b"l": "litellm", b"s": "semantic-router", b"t": "switchyard"}
assert set(_KINDS.values()) == set(KINDS)


def check(data: bytes) -> None:
    """Raises when a file ends in anything but a usable result or our error."""
    kind = data[:1]
    file = Path(_folder.name) / "file.yaml"
    file.write_bytes(data[1:])
    try:
        if kind in _KINDS:
            convert(_KINDS[kind], file)
        elif kind == b"r":
            load_routes(file)
        else:
            _check_config(file)
    except ConfigError as error:
        refusal = error
    else:
        return
    assert refusal.problems
    assert SECRET not in str(refusal) or SECRET.encode() in data, str(refusal)


def _check_config(file: Path) -> None:
    loaded = load_config(file, _ENVIRON)
    for backend in loaded.config.backends:
        to_backend(backend)
    for route in loaded.config.routes:
        to_route(route)
