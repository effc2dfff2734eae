"""The quality of the embedded classifier beside baselines on the same rows: `python -m bench.quality --data DIR`."""
