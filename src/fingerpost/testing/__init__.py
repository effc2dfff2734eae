"""Doubles for tests of code that uses fingerpost.

A real backend on a loopback socket, a proxy before it that injects faults into connections, and a classifier that follows a
script:

    with FakeBackend() as fake, FaultProxy(fake.port) as proxy:
        fake.script(FakeReply(status=503), FakeReply("Hello"))
        proxy.fault = Fault(cut_at=100)
        ...  # a gateway whose backend has url=proxy.url
        assert fake.requests[0].json["model"] == "small"
"""

from fingerpost.testing.backend import FakeBackend, FakeReply, Received
from fingerpost.testing.classifier import ScriptedClassifier
from fingerpost.testing.proxy import FAULTS, Fault, FaultProxy

__all__ = ["FAULTS", "FakeBackend", "FakeReply", "Fault", "FaultProxy", "Received", "ScriptedClassifier"]
