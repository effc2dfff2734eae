"""What all tests share: generated examples have no time limit of their own, since a busy machine is no defect."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("fingerpost", deadline=None, max_examples=2500)
settings.load_profile("fingerpost")
