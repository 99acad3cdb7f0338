import socket
from dataclasses import asdict

from stack.addresses import HOST, free_ports


def test_a_free_port_is_reserved_for_a_server() -> None:
    """The system assigns the port to no other socket, and a server can listen on it."""
    chosen = {port for _ in range(20) for port in asdict(free_ports()).values()}
    assert len(chosen) == 20 * len(asdict(free_ports()))
    for _ in range(2_000):
        with socket.create_server((HOST, 0)) as other:
            assert other.getsockname()[1] not in chosen
    for port in chosen:
        socket.create_server((HOST, port)).close()
