"""What can go wrong, and what a client is told about it.

Every error that crosses a room's border is one of these. Each carries the HTTP status and the machine-readable `code` that
a client sees, and whether another backend may be tried (`retryable`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


class FingerpostError(Exception):
    """An error with an HTTP status, a stable code and, where it helps, the path of the offending value."""

    status: int = 500
    code: str = "internal_error"
    retryable: bool = False
    retry_after: float | None = None
    """Seconds after which trying again makes sense, where that is known."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def to_json(self) -> dict[str, object]:
        """The error in OpenAI's response shape."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: where (`routes[1].backends[0]`), what, and what to do about it."""

    path: str
    what: str
    fix: str = ""
    file: str = ""
    line: int | None = None
    warning: bool = False

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        start = " ".join(part for part in (f"{place}:" if place else "", f"{self.path}:" if self.path else "") if part)
        return f"{start} {self.what}{'. ' + self.fix if self.fix else ''}".strip()


class ConfigError(FingerpostError):
    """A configuration that cannot be used; `problems` holds everything wrong with it, not only the first thing."""

    code = "invalid_config"

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class InvalidRequest(FingerpostError):
    """The request has the wrong shape; `param` is the path of the wrong value."""

    status = 400
    code = "invalid_request"

    @classmethod
    def too_large(cls, message: str) -> InvalidRequest:
        """A body that is larger than the server accepts."""
        error = cls(message)
        error.status, error.code = 413, "request_too_large"
        return error


class UnknownModel(FingerpostError):
    """`model` is neither `auto` nor the name of a route or a backend."""

    status = 404
    code = "model_not_found"


class NothingFits(FingerpostError):
    """Constraints removed every backend that could have served the request."""

    status = 422
    code = "no_backend_fits"


class Refused(FingerpostError):
    """The client may not: it is unknown (401), its key does not cover this (403), or it has used up what it may (429)."""

    status = 403
    code = "not_allowed"

    @classmethod
    def unknown(cls, message: str) -> Refused:
        """A client without a key, or with one that is not known."""
        error = cls(message)
        error.status, error.code = 401, "invalid_api_key"
        return error

    @classmethod
    def for_now(cls, message: str, code: str, retry_after: float | None) -> Refused:
        """A client that may try again in `retry_after` seconds; None when this request will never be let through."""
        error = cls(message)
        error.status, error.code, error.retry_after = 429, code, retry_after
        return error


class ClassifierError(FingerpostError):
    """A classifier could not give a verdict. The router answers it with the default route, never with a failed request."""

    status = 503
    code = "no_verdict"


class UpstreamError(FingerpostError):
    """A backend did not answer as it should: refused, broke off, or answered with a status that another may not."""

    status = 502
    code = "upstream_error"
    retryable = True


class UpstreamTimeout(UpstreamError):
    """A backend did not connect or answer in time."""

    status = 504
    code = "upstream_timeout"


class UpstreamBusy(UpstreamError):
    """A backend was not called: its queue is full (`full`), it asked for a rest (`resting`), or it keeps failing (`open`)."""

    status = 503
    code = "backends_busy"

    def __init__(
        self,
        message: str,
        why: Literal["full", "resting", "open"] = "full",
        retry_after: float = 1.0,
        *,
        param: str | None = None,
    ) -> None:
        super().__init__(message, param=param)
        self.why = why
        self.retry_after: float = retry_after
