"""The HTTP door: connections, requests and their responses, the doors behind them, and the process that serves."""
