import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cascade.connectors.mqtt import session
from cascade.connectors.mqtt.health import ConnectionHealth
from tests.connectors.mqtt.broker import SETTINGS, Broker, Listener
from tests.lab.programs import program


@pytest.fixture(scope="session")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("mosquitto"), *SETTINGS) as broker:
        yield broker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker for one test, which may stop it."""
    with Broker(tmp_path, *SETTINGS) as broker:
        yield broker


@pytest.fixture
def project(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The project of the test, which separates its messages from those of other tests."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[:100]
    monkeypatch.setenv("CASCADE_PROJECT_ID", name)
    return name


@pytest.fixture
def listener(shared_broker: Broker, project: str) -> Iterator[Listener]:
    """Receives all messages of the project of the test."""
    with Listener(shared_broker.port, f"cascade/+/local/{project}/#") as listener:
        yield listener


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, and two certificates that it has signed."""
    openssl = program("openssl")
    folder = tmp_path_factory.mktemp("tls")

    def run(command: str) -> None:
        subprocess.run([openssl, *command.split()], check=True, capture_output=True, cwd=folder)

    # Python 3.13 requires these extensions of an authority and of its certificates.
    usage = "-addext keyUsage=critical,keyCertSign,cRLSign"
    run(f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority {usage} -keyout ca.key -out ca.pem")
    (folder / "names").write_text("subjectAltName=DNS:localhost\nauthorityKeyIdentifier=keyid\n")
    for name in ("server", "client"):
        run(f"req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr")
        signing = f"-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out {name}.pem"
        run(f"x509 -req -in {name}.csr {signing}")
    return folder


@pytest.fixture
def latest_health(monkeypatch: pytest.MonkeyPatch) -> Callable[[], ConnectionHealth]:
    """Return the health of the session that was started last."""
    healths: list[ConnectionHealth] = []

    class RecordedHealth(ConnectionHealth):
        def __init__(self, previous: ConnectionHealth | None = None) -> None:
            super().__init__(previous)
            healths.append(self)

    monkeypatch.setattr(session, "ConnectionHealth", RecordedHealth)
    return lambda: healths[-1]
