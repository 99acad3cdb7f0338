"""Fixtures that read Compose files."""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from stack import build
from stack.build import ROOT
from tests.lab.programs import go

Project = dict[str, Any]


@pytest.fixture(scope="session")
def compose_config() -> Callable[..., Project]:
    """Return the output of `docker compose config` from the library of Docker Compose, for profiles and further files."""
    if not build.compose_config_path().exists():
        go()
        build.compose_config()

    def load(*profiles: str, files: Sequence[Path] = (), **environment: str) -> Project:
        done = subprocess.run(
            [build.compose_config_path(), ROOT / "docker-compose.yml", *files],
            env={"PATH": os.environ["PATH"], "COMPOSE_PROFILES": ",".join(profiles), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        project: Project = json.loads(done.stdout)
        return project

    return load
