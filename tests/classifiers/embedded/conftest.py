"""One loaded model for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fingerpost.classifiers.embedded import Embedded
from fingerpost.classifiers.embedded.encoder import Encoder


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture(scope="session")
def embedded() -> Iterator[Embedded]:
    embedded = Embedded()
    yield embedded
    embedded._batches.close()
    embedded._reader.shutdown()
