"""The circumstances of a measurement: date, machine, versions and load."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("opentelemetry-sdk", "grpcio", "protobuf", "paho-mqtt", "aiomqtt")


def circumstances(seconds: float) -> str:
    """Return the date, the machine, the versions and the duration on one line."""
    load = f"load {os.getloadavg()[0]:.1f} at the end" if hasattr(os, "getloadavg") else ""
    packages = [f"{name} {_version(name)}" for name in _PACKAGES]
    parts = [f"{datetime.now(UTC):%Y-%m-%d}", _processor(), f"{os.cpu_count()} cores", *_memory()]
    parts += [platform.platform(terse=True), f"Python {platform.python_version()}", *packages, *filter(None, [load])]
    return ", ".join([*parts, f"{seconds:.0f} s"])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _memory() -> list[str]:
    """Return the size of the machine's memory, if the system reports it."""
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return []
    return [f"{size / 2**30:.0f} GiB"]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
