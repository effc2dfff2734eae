"""A gateway under load while its backends fail and its configuration is reloaded: `python -m bench.chaos`."""
