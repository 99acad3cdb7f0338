"""Ports of 127.0.0.1 that refuse connections."""

import socket

_bound = list[socket.socket]()
"""They live as long as the tests."""


def refused_port() -> int:
    """A port on which nothing listens.

    A socket stays bound to it, so that the system gives the port to no other program. A server of the test may still
    listen on it, since servers allow the reuse of an address.
    """
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    _bound.append(bound)
    port: int = bound.getsockname()[1]
    return port
