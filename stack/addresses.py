"""Addresses of the servers, on the loopback interface."""

import socket
from collections.abc import Callable
from dataclasses import dataclass, fields

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports of the servers. The defaults are those of Compose."""

    otlp_grpc: int = 4317
    otlp_http: int = 4318
    collector_health: int = 13133
    collector_self: int = 8888
    collector_prometheus: int = 8889
    jaeger_otlp: int = 14317
    jaeger_health: int = 14133
    jaeger_http: int = 16686
    jaeger_grpc: int = 16685
    mqtt: int = 1883
    prometheus: int = 9090

    def at(self, port: int) -> str:
        return f"{HOST}:{port}"

    def url(self, port: int, path: str = "") -> str:
        return f"http://{HOST}:{port}{path}"


def free_ports() -> Ports:
    """Return free ports, reserved for servers that this process starts."""
    return _ports(lambda _: True)


def default_ports() -> Ports:
    """Return the default ports, and free ones instead of those in use."""
    return _ports(lambda port: not _is_free(port))


def _ports(is_replaced: Callable[[int], bool]) -> Ports:
    defaults = Ports()
    return Ports(
        **{
            name: reserved_port() if is_replaced(getattr(defaults, name)) else getattr(defaults, name)
            for name in (field.name for field in fields(Ports))
        }
    )


def reserved_port() -> int:
    """Return a port that refuses connections and is reserved until this process ends.

    A server that allows the reuse of addresses can listen on it.
    """
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, 0))
    port: int = bound.getsockname()[1]
    bound.detach()  # the socket is closed at the end of the process
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True
