"""A web service whose requests and background jobs are workflows: `uvicorn fastapi_app:app`, in this folder.

`opentelemetry-instrument uvicorn fastapi_app:app` adds the spans of the requests, if opentelemetry-distro and
opentelemetry-instrumentation-fastapi are installed. The span of a request is then the parent of its runs.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import BackgroundTasks, FastAPI
from opentelemetry import trace

import cascade as cs
from cascade.connectors.otel import OtelConnector

T = TypeVar("T")

connector = OtelConnector()  # one for all runs of the process; it opens no connection before the first run
running: set[asyncio.Task[Any]] = set()
reports: dict[str, int] = {}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
    # uvicorn waits for the requests and their background tasks. After --timeout-graceful-shutdown it cancels them, but does
    # not wait until the runs have delivered their spans.
    if running:
        await asyncio.wait(running, timeout=30)
    # Spans that belong to no run, such as those of requests, are delivered here.
    if flush := getattr(trace.get_tracer_provider(), "force_flush", None):
        await asyncio.to_thread(flush)


app = FastAPI(lifespan=lifespan)


async def run(target: cs.LazyResult[T]) -> T:
    """Run a workflow in the event loop of the server. A shutdown waits for it."""
    if task := asyncio.current_task():
        running.add(task)
        task.add_done_callback(running.discard)
    return await cs.run_async(target, connector=connector, log_level="WARNING")


@cs.task
def length(word: str) -> int:
    return len(word)


@cs.task
def total(lengths: list[int]) -> int:
    return sum(lengths)


@cs.task
async def save(name: str, letters: int) -> None:
    reports[name] = letters


@app.get("/letters")
async def count_letters(text: str) -> int:
    return await run(total(length.map(word=text.split())))


@app.get("/letters/in-a-thread")
def count_letters_in_a_thread(text: str) -> int:
    """Run a workflow in a thread of the server: FastAPI calls plain functions there."""
    return cs.run(total(length.map(word=text.split())), connector=connector, log_level="WARNING")


@app.post("/reports/{name}", status_code=202)
async def create_report(name: str, text: str, background: BackgroundTasks) -> str:
    """Run a workflow after the response."""
    background.add_task(run, save(name, total(length.map(word=text.split()))))
    return name


@app.get("/reports/{name}")
async def show_report(name: str) -> int | None:
    return reports.get(name)
