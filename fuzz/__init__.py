"""Coverage-guided fuzzing of what reads untrusted bytes: `scripts/fuzz`.

A target is a module in `targets` with `check(data)`, which raises when a promise is broken, `SEEDS` to begin with, and `WORDS`
that its inputs are made of. `corpus` keeps what was found worth keeping, one file for each target; the tests replay it.
"""
