"""Starts and stops the servers as detached processes."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from stack import build, local
from stack.addresses import Ports, default_ports
from stack.process import TIMEOUT, Server, ServerError, until

FOLDER = build.ROOT / ".make" / "stack"
"""The folder for the logs and the data of the servers. `make clean` removes it."""

_INTERVALS = local.Intervals()
_OPTIONAL = {"mosquitto": "MQTT", "prometheus": "Jaeger's Monitor tab and Prometheus"}


@dataclass(frozen=True, slots=True)
class State:
    """Ports and processes of the servers that `up` started.

    Attributes:
        ports: The ports of all servers.
        pids: Process ids by the names of the servers.
        start_times: Start times of the processes. They detect process ids that other processes have after a restart of
            the machine. A file of an older version has none.
    """

    ports: Ports
    pids: dict[str, int]
    start_times: dict[str, str | None]

    def save(self, folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps(asdict(self)))

    def alive(self) -> dict[str, int]:
        """Return the process ids of the running servers."""
        return {
            name: pid
            for name, pid in self.pids.items()
            if (start_time := _start_time(pid)) and start_time == self.start_times.get(name, start_time)
        }

    @classmethod
    def load(cls, folder: Path) -> "State | None":
        """Return the state that `up` saved, if any of its processes is running."""
        with suppress(FileNotFoundError):
            plain = json.loads((folder / "state.json").read_text())
            state = cls(Ports(**plain["ports"]), plain["pids"], plain.get("start_times", {}))
            if state.alive():
                return state
        return None


def up(folder: Path = FOLDER, choose_ports: Callable[[], Ports] = default_ports) -> str:
    """Start the servers, and restart them if one has ended; return their addresses and the next commands.

    Raises:
        BuildError: The Collector or Jaeger could not be built.
        ServerError: A server did not start.
    """
    state = State.load(folder)
    if state and len(state.alive()) < len(state.pids):
        down(folder)
        state = None
    if state is None:
        build.collector(_log)
        build.jaeger(_log)
        ports, started = choose_ports(), list[Server]()
        try:
            for make in _servers(folder, ports):
                server = make()
                server.start()
                started.append(server)
        except BaseException:
            for server in started:
                server.stop()
            raise
        pids = {server.name: server.process.pid for server in started if server.process}
        state = State(ports, pids, {name: _start_time(pid) for name, pid in pids.items()})
        state.save(folder)
    return "\n".join(_addresses(folder, state))


def down(folder: Path = FOLDER) -> str:
    """Stop the servers that `up` started; their data is kept."""
    state = State.load(folder)
    if state is None:
        return "The stack is not running."
    for pid in reversed(state.alive().values()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    for name in state.pids:
        until(lambda name=name: name not in state.alive(), f"{name} has ended", TIMEOUT)  # type: ignore[misc]  # bound now
    (folder / "state.json").unlink()
    return f"Ended {', '.join(state.pids)}."


def _servers(folder: Path, ports: Ports) -> Iterator[Callable[[], Server]]:
    yield lambda: local.jaeger(folder, ports, detached=True)
    yield lambda: local.collector(folder, ports, _INTERVALS, detached=True)
    for program, what in _OPTIONAL.items():
        try:
            local.program(program)
        except ServerError as error:
            _log(f"{error}; without it there is no {what}")
        else:
            yield lambda program=program: _optional(program, folder, ports)  # type: ignore[misc]  # bound now


def _optional(program: str, folder: Path, ports: Ports) -> Server:
    if program == "mosquitto":
        return local.mosquitto(folder, ports, detached=True)
    return local.prometheus(folder, ports, _INTERVALS, detached=True)


def _addresses(folder: Path, state: State) -> Iterator[str]:
    ports = state.ports
    otlp, jaeger = ports.url(ports.otlp_http), ports.url(ports.jaeger_http)
    yield f"Jaeger      {jaeger}   the query API; this build has no pages: `make stack-show` draws a trace"
    yield f"Collector   {otlp} (HTTP), {ports.at(ports.otlp_grpc)} (gRPC)"
    if "Mosquitto" in state.pids:
        user = f"{local.RUNNER}:{local.PASSWORD}"
        yield f"Mosquitto   mqtt://{user}@{ports.at(ports.mqtt)}, and the user {local.OPERATOR} for monitoring and control"
    if "Prometheus" in state.pids:
        yield f"Prometheus  {ports.url(ports.prometheus)}"
    yield f"Logs        {folder}"
    yield ""
    yield "Run the demo and draw its trace:"
    yield ""
    yield f"  OTEL_EXPORTER_OTLP_ENDPOINT={otlp} make demo"
    yield "  make stack-show"


def _start_time(pid: int) -> str | None:
    """Return the start time of a process, in clock ticks since the start of the machine; None if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        status, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if status == "Z" else fields[18]
    return None


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
