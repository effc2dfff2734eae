"""The command line: each command is a few lines that call the library."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fingerpost import __version__, assemble, config, demo
from fingerpost.chat import ChatRequest
from fingerpost.clients.keys import hash_of, new_key
from fingerpost.config.shape import to_route
from fingerpost.errors import ConfigError, FingerpostError, InvalidRequest, Problem, UnknownModel
from fingerpost.records import Decision
from fingerpost.router import Router
from fingerpost.routes import Backend, RouteTable

Result = TypeVar("Result")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 1 could not, 2 wrong input, 130 interrupted."""
    arguments = _parser().parse_args(argv)
    # So that a classifier beside the configuration can be imported, whichever way this was started.
    if "" not in sys.path:
        sys.path.append("")
    try:
        code = int(arguments.run(arguments) or 0)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except ConfigError as error:
        for problem in error.problems:
            print(f"warning: {problem}" if problem.warning else str(problem), file=sys.stderr)
        return 2
    except FingerpostError as error:
        print(error.message, file=sys.stderr)
        return 2 if isinstance(error, InvalidRequest | UnknownModel) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"{error.filename}: {error.strerror}" if error.filename else str(error), file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fingerpost", description="Route each conversation to the model that fits.")
    parser.add_argument("--version", action="version", version=f"fingerpost {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, help_: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_, description=help_)
        added.set_defaults(run=run)
        return added

    demo_ = command("demo", _demo, "Decide eleven example conversations with the default configuration.")
    demo_.add_argument("--json", action="store_true", help="print a JSON list")
    init = command("init", _init, "Write a commented fingerpost.yaml.")
    init.add_argument("file", nargs="?", default="fingerpost.yaml")
    init.add_argument("--force", action="store_true", help="overwrite the file if it is there")
    import_ = command("import", _import, "Turn another router's configuration into a fingerpost.yaml.")
    import_.add_argument("kind", choices=("litellm", "semantic-router", "switchyard"))
    import_.add_argument("file", help="LiteLLM's config.yaml, semantic-router's router file, or Switchyard's deployment TOML")
    import_.add_argument("-o", "--out", metavar="FILE", help="where to write it; standard output unless given")
    import_.add_argument("--force", action="store_true", help="overwrite the file if it is there")
    check = command("check", _check, "Print what a configuration says, or everything that is wrong with it.")
    _add_file(check)
    command("schema", _schema, "Print the JSON Schema of fingerpost.yaml.")
    keys = command("keys", _keys, "Make a key for a client: prints it once, and what to paste into the configuration.")
    keys.add_argument("what", choices=["new"])
    keys.add_argument("--name", default="NAME", help="the client's name")
    serve = command("serve", _serve, "Serve the gateway.")
    _add_file(serve)
    serve.add_argument("--host", help="instead of server.host")
    serve.add_argument("--port", type=_port, help="instead of server.port")
    serve.add_argument("--workers", type=_workers, metavar="N", help="instead of server.workers: processes that share the port")
    route = command("route", _route, "Decide one request.")
    route.add_argument("request", help="the user's text, - for standard input, or a .json file of messages")
    route.add_argument("--config", metavar="FILE", help="a configuration instead of the default one")
    route.add_argument("--json", action="store_true", help="print the decision as JSON")
    route.add_argument("--explain", action="store_true", help="print all probabilities, the reason and the constraints")
    _add_eval(command("eval", _eval, "Measure a classifier on labelled conversations."))
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; use 0 to 65535")
    return int(text)


def _workers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of workers; use 1 to 256")
    return int(text)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _add_eval(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("data", help="JSON lines, plain or .gz: id, messages, route, and optionally routes, also, group")
    evaluate.add_argument("--routes", metavar="FILE", help="a JSON or YAML list of name, description, examples")
    evaluate.add_argument("--config", metavar="FILE", help="a configuration whose routes and classifier to use")
    evaluate.add_argument("--classifier", metavar="NAME", help="embedded, one that --config sets up, or my.module:build")
    evaluate.add_argument("--precision", type=_share, default=0.95, help="what the suggested thresholds aim at (0.95)")
    evaluate.add_argument("--json", action="store_true", help="print the figures as JSON")
    evaluate.add_argument("--out", metavar="FILE", help="write each row's decision as JSON lines")
    evaluate.add_argument("--plots", metavar="DIR", help="write confusion.png and coverage.png (needs matplotlib)")


def _add_file(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", nargs="?", help="the configuration (fingerpost.yaml)")
    command.add_argument("--config", metavar="FILE", help="the same")


def _file(arguments: argparse.Namespace) -> str:
    return str(arguments.file or arguments.config or "fingerpost.yaml")


def _demo(arguments: argparse.Namespace) -> None:
    router = assemble.load_router()
    rows = asyncio.run(_closing(router, demo.decide_all(router)))
    if arguments.json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    shown = [("request", "route", "backend", "confidence", "ms")]
    for row in rows:
        request = row["request"] if len(row["request"]) <= 52 else row["request"][:49] + "..."
        confidence = "-" if row["confidence"] is None else f"{row['confidence']:.2f}"
        shown.append((request, row["route"], row["backend"], confidence, f"{row['ms']:.2f}"))
    print(_aligned(shown, numbers=2))


def _init(arguments: argparse.Namespace) -> int:
    if Path(arguments.file).exists() and not arguments.force:
        print(f"{arguments.file} is there already; --force overwrites it", file=sys.stderr)
        return 2
    shutil.copyfile(assemble.DEFAULT_FILE, arguments.file)
    print(f"wrote {arguments.file}; next: fingerpost check {arguments.file}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from fingerpost.config.importers import convert

    if arguments.out and Path(arguments.out).exists() and not arguments.force:
        print(f"{arguments.out} is there already; --force overwrites it", file=sys.stderr)
        return 2
    text, notes = convert(arguments.kind, arguments.file)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if arguments.out:
        Path(arguments.out).write_text(text, encoding="utf-8")
        print(f"wrote {arguments.out}; next: fingerpost check {arguments.out}")
    else:
        print(text, end="")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    from fingerpost.server.auth import check_exposure, find_unshared

    loaded = config.load(_file(arguments))
    check_exposure(loaded.config)
    # What can only be seen when it is built: a package that is missing, an import string that leads nowhere.
    table = assemble.build_world(loaded.config, []).gateway.router.table
    print("backends")
    print(_aligned([_about(backend) for backend in table.backends.values()], indent=2))
    print("routes")
    examples = {route.name: f"{len(route.examples)} examples" if route.examples else "" for route in table.routes}
    print(_aligned([(r.name, " then ".join(r.backends), examples[r.name]) for r in table.routes], indent=2))
    print(f"classifier: {loaded.config.classifier.use}; server: {loaded.config.server.host}:{loaded.config.server.port}")
    for problem in [*loaded.warnings, *find_unshared(loaded.config), *assemble.find_lookalikes(loaded)]:
        print(f"warning: {problem}", file=sys.stderr)


def _about(backend: Backend) -> tuple[str, ...]:
    context = f"{backend.context} tokens" if backend.context else "context unknown"
    accepts = ", ".join(sorted(backend.accepts))
    return backend.name, backend.model, backend.url, "with a key" if backend.key else "without a key", context, accepts


def _aligned(rows: Sequence[Sequence[str]], *, indent: int = 0, numbers: int = 0) -> str:
    """The rows in columns, the last `numbers` of them to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first_number = len(widths) - numbers
    return "\n".join(
        " " * indent
        + "  ".join(
            cell.rjust(width) if place >= first_number else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _keys(arguments: argparse.Namespace) -> None:
    key = new_key()
    print(f"The key, which is shown once and kept nowhere:\n\n{key}\n\nFor fingerpost.yaml, which keeps its hash:\n")
    print(f"keys:\n  - name: {json.dumps(arguments.name, ensure_ascii=False)}\n    hash: {hash_of(key)}")


def _schema(arguments: argparse.Namespace) -> None:
    print(json.dumps(config.schema(), indent=2))


def _serve(arguments: argparse.Namespace) -> int:
    from fingerpost.server.files import ConfigFile, tell
    from fingerpost.server.serve import serve
    from fingerpost.server.upkeep import Upkeep

    # One that comes before there is anything to reload would end the process; now it waits until it can be obeyed.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    given = {"host": arguments.host, "port": arguments.port, "workers": arguments.workers}
    file = ConfigFile(Path(_file(arguments)), {key: value for key, value in given.items() if value is not None})
    loaded = file.read()
    if loaded.config.server.workers > 1:
        from fingerpost.server.workers import serve_together

        tell(loaded.warnings)
        return serve_together(file, loaded.config)
    world = assemble.build_world(loaded.config)
    tell(loaded.warnings)
    return serve(world, Upkeep(world, file.path, file.rebuild, seen=file.looks))


def _route(arguments: argparse.Namespace) -> None:
    router = assemble.load_router(arguments.config or assemble.DEFAULT_FILE)
    decision = asyncio.run(_closing(router, _decide(router, _read_request(arguments.request))))
    if arguments.json:
        print(json.dumps(decision.to_json(), ensure_ascii=False))
    elif arguments.explain:
        print(_explained(decision))
    else:
        print(decision.route or decision.backends[0].name)


async def _decide(router: Router, request: ChatRequest) -> Decision:
    await router.prepare()  # so that the time shown is that of the decision alone
    return await router.decide(request)


async def _closing(router: Router, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of some work with a router, which is closed then."""
    try:
        return await work
    finally:
        await router.aclose()


def _read_request(given: str) -> ChatRequest:
    if given == "-":
        try:
            return ChatRequest.from_messages(sys.stdin.read().strip())
        except UnicodeDecodeError as error:
            raise ConfigError([Problem("", f"standard input is not text: {error}")]) from None
    # "What is in package.json" is a question, and no file.
    if not given.endswith(".json") or (" " in given and not os.path.exists(given)):
        return ChatRequest.from_messages(given)
    try:
        messages = json.loads(Path(given).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError([Problem("", f"{given} is not a JSON file of messages: {error}")]) from None
    return ChatRequest.parse(messages) if isinstance(messages, dict) else ChatRequest.from_messages(messages)


def _explained(decision: Decision) -> str:
    lines = [
        f"route    {decision.route or '- (the request names a backend)'}",
        f"backend  {' then '.join(backend.name for backend in decision.backends)}",
        f"reason   {decision.reason}",
        f"time     {decision.elapsed * 1e3:.2f} ms",
    ]
    probabilities = decision.verdict.probabilities if decision.verdict else {}
    width = max(map(len, probabilities), default=0)
    lines += [
        f"  {name:{width}}  {value:6.1%}  {'#' * round(value * 40)}".rstrip()
        for name, value in sorted(probabilities.items(), key=lambda item: -item[1])
    ]
    lines += [f"struck out: {constraint.backend} {constraint.why}" for constraint in decision.constraints]
    return "\n".join(lines)


def _eval(arguments: argparse.Namespace) -> None:
    from fingerpost.evals import report, run

    rows = run.read_rows(arguments.data)
    if not rows:
        raise ConfigError([Problem("", "there are no rows", file=arguments.data)])
    router = _eval_router(arguments, rows_bring_routes=all(row.request.routes is not None for row in rows))
    strangers = run.find_strangers(rows, router.table)
    if strangers:
        shown = ", ".join(strangers[:5]) + (", ..." if len(strangers) > 5 else "")
        print(f"warning: rows are labelled with routes that cannot be chosen: {shown}", file=sys.stderr)
    if arguments.out:
        open(arguments.out, "a").close()  # before the work, so that it is not done for nothing
    write_plots = _plotting() if arguments.plots else None
    with _progress(len(rows)) as done:
        work = run.evaluate(rows, router, done, precision=arguments.precision)
        figures, lines = asyncio.run(_closing(router, work))
    if arguments.out:
        Path(arguments.out).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    if write_plots:
        write_plots(figures, lines, arguments.plots)
    print(json.dumps(figures, ensure_ascii=False) if arguments.json else report.render(figures))


def _plotting() -> Callable[..., object]:
    try:
        from fingerpost.evals.plots import write_plots
    except ImportError as error:
        raise ConfigError([Problem("", f"plots need matplotlib ({error})", "pip install 'fingerpost[notebooks]'")]) from None
    return write_plots


def _eval_router(arguments: argparse.Namespace, *, rows_bring_routes: bool) -> Router:
    loaded = config.load(arguments.config, deciding_only=True).config if arguments.config else None
    if arguments.routes:
        table = RouteTable(config.load_routes(arguments.routes))
    elif loaded:
        # Without backends: what is measured is the routes, whatever serves them.
        table = RouteTable(tuple(replace(to_route(route), backends=()) for route in loaded.routes))
    elif rows_bring_routes:
        table = RouteTable(())
    else:
        raise ConfigError([Problem("", "no routes: not every row brings its own", "Give --routes FILE or --config FILE")])
    classifier = assemble.pick_classifier(loaded, arguments.classifier)
    return Router(table, classifier, cache_size=0)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error, where that is a terminal; yields what to call after each row."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("deciding", total=total)
        yield lambda: bar.advance(task)
