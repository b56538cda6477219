# SPDX-License-Identifier: Apache-2.0
"""Command line: `python -m oneshot run` and `python -m oneshot report`."""

import argparse
import os
import runpy
import sys
from pathlib import Path

import oneshot
from oneshot import config, hook, report


def _run(arguments: argparse.Namespace) -> int:
    os.environ["ONESHOT"] = "1"
    try:
        oneshot.enable()
    except (config.ConfigError, hook.UnavailableError) as error:
        print(f"oneshot: {error}", file=sys.stderr)
        return 2
    program, *rest = arguments.program
    if arguments.module:
        sys.argv = [program, *rest]
        sys.path[0] = os.getcwd()
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif not Path(program).is_file():
        print(f"oneshot: no such file: {program}", file=sys.stderr)
        return 2
    else:
        sys.argv = [program, *rest]
        sys.path[0] = str(Path(program).resolve().parent)
        runpy.run_path(program, run_name="__main__")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    try:
        modules = report.load(arguments.directory)
    except (FileNotFoundError, ValueError) as error:
        print(f"oneshot: {error}", file=sys.stderr)
        return 2
    for module in modules:
        print(module.text, end="")
    total = sum(len(module.all_reduces) for module in modules)
    fired = sum(module.fired for module in modules)
    print(f"{len(modules)} modules with all-reduces; {fired} of {total} all-reduces fused")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Returns:
      The exit code: 2 for bad usage or a machine that Oneshot can't run on.
    """
    parser = argparse.ArgumentParser(prog="oneshot", description=oneshot.__doc__)
    parser.add_argument("--version", action="version", version=oneshot.__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    run = commands.add_parser("run", help="run a Python program with Oneshot on")
    run.add_argument("-m", dest="module", action="store_true", help="the program is a module")
    run.add_argument("program", nargs=argparse.REMAINDER, help="a script and its arguments")
    run.set_defaults(function=_run)

    show = commands.add_parser("report", help="print what was rewritten, and what was not and why")
    show.add_argument("directory", help="what ONESHOT_DUMP_TO named")
    show.set_defaults(function=_report)

    arguments = parser.parse_args(argv)
    if arguments.function is _run and not arguments.program:
        run.error("a script is required")
    return arguments.function(arguments)


if __name__ == "__main__":
    sys.exit(main())
