"""These tests need NAT itself: `scripts/test-nat` installs it and runs them; where it is missing they are left out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from typing import Any

import pytest

if find_spec("nat") is None:
    collect_ignore_glob = ["test_*.py"]

Built = Callable[..., AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def _built(**functions: Any) -> AsyncIterator[Any]:
    """The last of these functions, built by NAT from its settings, the others beside it under their names."""
    from nat.builder.workflow_builder import WorkflowBuilder

    async with WorkflowBuilder() as builder:
        for name, settings in functions.items():
            await builder.add_function(name, settings)
        yield await builder.get_function(list(functions)[-1])


@pytest.fixture
def built() -> Built:
    """Gives NAT the settings of functions, by name; the last of them is what `async with` yields."""
    return _built
