"""Runs NeMo Switchyard's server, in its own environment, and asks its /v1/decision.

Arguments: the server's TOML file. Bodies come as a JSON list on standard input; a JSON list of [status, answer] goes to
standard output, with null for an answer that is not JSON.
"""

import contextlib
import json
import os
import sys
import urllib.error
import urllib.request

from switchyard_rust.server import Server


def ask(url: str, body: object) -> list[object]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return [answer.status, json.loads(answer.read() or b"null")]


# The server logs to standard output; the answers alone belong there.
answers_to = os.dup(1)
os.dup2(2, 1)
with Server(sys.argv[1]) as server:
    answers = [ask(f"{server.base_url}/v1/decision", body) for body in json.load(sys.stdin)]
with contextlib.closing(os.fdopen(answers_to, "w")) as out:
    json.dump(answers, out)
