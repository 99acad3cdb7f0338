"""`python -m stack build [collector] [jaeger]`, `up`, `down`: the stack without Docker."""

import argparse
import sys

from stack import build

_PROGRAMS = {"collector": build.collector, "jaeger": build.jaeger, "compose-config": build.compose_config}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m stack", description="The stack without Docker.")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser(
        "build", help="build the Collector and Jaeger into the cache: some minutes each, once for a machine"
    )
    building.add_argument("program", nargs="?", choices=_PROGRAMS, help="one of them; by default all")
    options = parser.parse_args(arguments)
    try:
        for name in [options.program] if options.program else _PROGRAMS:
            print(_PROGRAMS[name](_say))
    except build.BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
