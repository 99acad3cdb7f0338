"""Command line of the stack without Docker: builds, starts and stops the servers, and shows runs."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cascade.testing import Spans
from stack import build, look, picture, prepare, running, up
from stack.addresses import default_ports, free_ports
from stack.chromium import ScreenshotError
from stack.process import ServerError
from stack.progress import CommandError

_PROGRAMS = {
    "collector": build.collector,
    "jaeger": build.jaeger,
    "compose-config": build.compose_config,
    "mochi": build.mochi,
    "actionlint": build.actionlint,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stack", description="The stack without Docker.")
    parser.add_argument(
        "--folder", type=Path, default=up.FOLDER, help="the folder for logs and the data of the servers"
    )
    parser.add_argument("--free-ports", action="store_true", help="use free ports instead of the default ports")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="build the Collector and Jaeger: some minutes each, once per machine")
    building.add_argument("program", nargs="?", choices=_PROGRAMS, help="the program to build; all by default")
    commands.add_parser("up", help="start Jaeger, the Collector, Mosquitto and Prometheus")
    commands.add_parser("down", help="stop the servers; their data is kept")
    showing = commands.add_parser("show", help="draw a trace from Jaeger in the terminal")
    drawing = commands.add_parser("picture", help="draw a trace from Jaeger as SVG")
    looking = commands.add_parser("look", help="open the pages of a run, and save screenshots with Chromium")
    for reading in (showing, drawing, looking):
        reading.add_argument(
            "trace_id", nargs="?", help="the id of a trace or of a run; by default the latest run of any service"
        )
    looking.add_argument("--out", type=Path, default=look.FOLDER, help="the folder for the screenshots")
    try:
        for text in _do(parser.parse_args(arguments)):
            print(text, flush=True)
    except BrokenPipeError:  # the reader of the pipe, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (build.BuildError, CommandError, ScreenshotError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _do(options: argparse.Namespace) -> Iterator[str]:
    match options.command:
        case "build":
            prepare.install_go()
            paths = [_PROGRAMS[options.program](_log)] if options.program else build.everything(_log)
            yield "\n".join(map(str, paths))
        case "up":
            yield up.up(options.folder, free_ports if options.free_ports else default_ports)
        case "down":
            yield up.down(options.folder)
        case "look":
            yield from look.look(options.trace_id, options.folder, options.out)
        case "show":
            from cascade.testing import render_trace  # needs the extra [cli]

            yield render_trace(_trace(options))
        case _:
            yield picture.draw(_trace(options))


def _trace(options: argparse.Namespace) -> Spans:
    return running.trace(options.trace_id, running.find(options.folder).jaeger)


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
