"""The HTTP door: an ASGI application and the process that serves it."""
