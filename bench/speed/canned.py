"""The upstreams: nginx where it suits, our own server where it does not, each on the core of the load."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.speed.cases import LARGE, SMALL
from bench.speed.processes import Running, free_port, running

_CONF = """
{user}daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  default_type application/json;
  keepalive_requests 1000000000;
  keepalive_timeout 600s;
  client_max_body_size 64m;
  client_body_buffer_size 16m;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  {servers}
}}
"""

_SERVERS = {
    # One buffer, the quickest that nginx can: it answers as soon as it has read the head.
    "small": "server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 '{small}'; }} }}",
    # A body that comes in pieces is read to its end first, as a model server would: a proxied request waits for its body.
    "whole": """server {{
    listen 127.0.0.1:{port} backlog=4096;
    proxy_pass_request_body off;
    proxy_set_header Content-Length "";
    location / {{ proxy_pass http://unix:{folder}/whole.sock:/; }}
  }}
  server {{ listen unix:{folder}/whole.sock backlog=4096; location / {{ return 200 '{small}'; }} }}""",
    # A file; nginx gives none to a POST, but it does give one as the page of that error.
    "large": """server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {folder};
    error_page 405 =200 /large.json;
    location / {{ try_files /large.json =404; }}
  }}""",
}


def nginx() -> str | None:
    """Where nginx is, if it is installed."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def upstream(kind: str, folder: Path, cores: set[int], *, plain: bool = False) -> Iterator[Running]:
    """A running upstream of a kind: `small`, `whole` and `large` by nginx (not if `plain`), `stream` by our own server."""
    port, program = free_port(), nginx()
    command = [sys.executable, "-m", "bench.speed.upstream", kind, str(port)]
    if kind != "stream" and not plain and program is not None:
        command = [program, "-p", str(folder), "-c", str(_write_conf(kind, port, folder))]
    with running(command, port, folder / f"upstream-{kind}.log", cores) as server:
        yield server


def _write_conf(kind: str, port: int, folder: Path) -> Path:
    (folder / "large.json").write_bytes(LARGE)
    servers = _SERVERS[kind].format(port=port, folder=folder, small=SMALL.decode())
    # The pages lie in a folder of the user who runs this, which nginx's own user may not read.
    user = "user root;\n" if os.geteuid() == 0 else ""
    file = folder / f"nginx-{kind}.conf"
    file.write_text(_CONF.format(user=user, folder=folder, servers=servers))
    return file
