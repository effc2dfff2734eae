"""fingerpost as a component of the NVIDIA NeMo Agent Toolkit (NAT): functions for its workflows, an evaluator for `nat eval`.

NAT finds this package by the entry point group `nat.plugins` and imports it, which registers what is in it. `settings` says
what may be written in a workflow file, `request` and `answer` are what goes in and out, `functions` decides.

Needs the extra `nat`; nothing else of fingerpost imports this room.
"""

from fingerpost.nat import evaluator, functions

__all__ = ["evaluator", "functions"]
