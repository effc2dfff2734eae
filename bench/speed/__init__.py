"""What a request costs in fingerpost and in other gateways, in one run: `scripts/bench-speed`, or `python -m bench.speed`."""
