"""`python -m stack build`, `up`, `show`, `down`: the stack without Docker."""

import argparse
import os
import sys
from pathlib import Path

from cascade.testing import render_trace
from stack import build, picture, prepare, up
from stack.addresses import default_ports, free_ports
from stack.process import ServerError
from stack.progress import CommandError

_PROGRAMS = {
    "collector": build.collector,
    "jaeger": build.jaeger,
    "compose-config": build.compose_config,
    "mochi": build.mochi,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stack", description="The stack without Docker.")
    parser.add_argument("--folder", type=Path, default=up.FOLDER, help="for logs and what the servers keep")
    parser.add_argument("--free-ports", action="store_true", help="not the usual ones")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser(
        "build", help="build the Collector and Jaeger: some minutes each, once for a machine"
    )
    building.add_argument("program", nargs="?", choices=_PROGRAMS, help="one of them; by default all")
    commands.add_parser("up", help="start Jaeger, the Collector, Mosquitto and Prometheus")
    commands.add_parser("down", help="end them; what they keep stays")
    showing = commands.add_parser("show", help="draw a trace that Jaeger has")
    showing.add_argument("trace_id", nargs="?", help="by default that of the latest run of any service")
    drawing = commands.add_parser("picture", help="the same as a picture, in SVG")
    drawing.add_argument("trace_id", nargs="?", help="by default that of the latest run of any service")
    try:
        print(_do(parser.parse_args(arguments)), flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (build.BuildError, CommandError, ServerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _do(options: argparse.Namespace) -> str:
    match options.command:
        case "build":
            prepare.install_go()
            paths = [_PROGRAMS[options.program](_say)] if options.program else build.everything(_say)
            return "\n".join(map(str, paths))
        case "up":
            return up.up(options.folder, free_ports if options.free_ports else default_ports)
        case "down":
            return up.down(options.folder)
        case "show":
            return render_trace(up.trace(options.trace_id, options.folder))
        case _:
            return picture.draw(up.trace(options.trace_id, options.folder))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
