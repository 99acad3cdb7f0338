"""Large runs in bounded memory."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PART_SIZE = 2_000

SINK = """
import socketserver
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while line := self.rfile.readline():
            size = 0
            while (header := self.rfile.readline().strip()):
                name, _, value = header.partition(b":")
                size = int(value) if name.lower() == b"content-length" else size
            self.rfile.read(size)
            self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n")
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
with Server(("127.0.0.1", 0), Handler) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
"""

RUN = """
import json, sys
import cascade as cs
from cascade.connectors.otel import OtelConnector

@cs.task
async def double(x):
    return 2 * x

@cs.task
async def total(xs):
    return sum(xs)

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
    return int(status["VmHWM"].split()[0]) * 1024

port, items = map(int, sys.argv[1:])
connector = OtelConnector(f"http://127.0.0.1:{port}", detail="tasks", flush_timeout=600)  # the number of waits depends on the machine
cs.run(total([1]), connector=connector, log_level="ERROR")
before = peak()
result = cs.run(total(double.map(x=range(items))), connector=connector, log_level="ERROR")
report = connector.report()
print(json.dumps({"result": result, "sent": report.sent, "lost": report.lost, "grown": peak() - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("items", [50_000, pytest.param(1_000_000, marks=pytest.mark.large)])
def test_all_items_of_a_large_map_are_exported_in_bounded_memory(items: int) -> None:
    sink = subprocess.Popen([sys.executable, "-c", SINK], stdout=subprocess.PIPE, text=True)
    try:
        assert sink.stdout is not None
        port = sink.stdout.readline().strip()
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(RUN), port, str(items)], capture_output=True, text=True, check=True
        )
    finally:
        sink.kill()
        sink.communicate()
    found = json.loads(run.stdout)
    parts = (items - 1) // PART_SIZE
    assert found["result"] == items * (items - 1)
    assert found["lost"] == 0
    assert found["sent"] == 3 + items + 1 + parts + 3, (
        "the roots, markers and tasks of two runs, the items and the parts"
    )
    # The items and the results are lists. The memory above them is that of the telemetry.
    values = items * (8 + 32 + 8 + 32)
    assert found["grown"] < values + 100 * 2**20
    assert run.stderr == ""
