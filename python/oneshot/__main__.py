# SPDX-License-Identifier: Apache-2.0
"""The command line."""

import argparse
import dataclasses
import itertools
import json
import os
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import oneshot
from oneshot import (
    bench,
    config,
    doctor,
    emulation,
    explanation,
    hook,
    libraries,
    page,
    report,
    xla_wheel,
)


def _fail(error: object) -> int:
    print(f"oneshot: {error}", file=sys.stderr)
    return 2


def _run(arguments: argparse.Namespace) -> int:
    try:
        if arguments.emulate is not None:
            if arguments.emulate < 1:
                return _fail("--emulate: at least one device")
            os.environ |= emulation.environment(arguments.emulate, os.environ)
        if config.switch() is None:
            os.environ["ONESHOT"] = "1"  # for processes that the program starts, too
        oneshot.enable()
    except (config.ConfigError, hook.UnavailableError) as error:
        return _fail(error)
    program, *rest = arguments.program
    if arguments.module:
        sys.argv = [program, *rest]
        sys.path[0] = os.getcwd()
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif not Path(program).is_file():
        return _fail(f"no such file: {program}")
    else:
        sys.argv = [program, *rest]
        sys.path[0] = str(Path(program).resolve().parent)
        runpy.run_path(program, run_name="__main__")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    checks = doctor.examine()
    print(doctor.to_json(checks) if arguments.json else doctor.to_text(checks))
    return 1 if any(check.status == doctor.PROBLEM for check in checks) else 0


def _explain(arguments: argparse.Namespace) -> int:
    try:
        found = explanation.explain_file(arguments.file, arguments.platform)
        if arguments.html:
            arguments.html.write_text(found.html())
    except (config.ConfigError, explanation.ExplainError, OSError) as error:
        return _fail(error)
    print(found)
    return 0


def _report(arguments: argparse.Namespace) -> int:
    try:
        modules = report.load(arguments.directory)
        if arguments.html:
            arguments.html.write_text(page.write(modules))
    except (OSError, ValueError) as error:
        return _fail(error)
    if modules:
        print(report.text(modules))
    sites = [site for module in modules for site in module.all_reduces]
    print(f"{len(modules)} modules with all-reduces; {report.tally(sites)}")
    return 0


def _progress(text: str) -> None:
    """Shows one line in place of the last, to people; an empty one takes it away."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _bench(arguments: argparse.Namespace) -> int:
    from oneshot.bench.models import MODELS

    names = arguments.models or ["op", *MODELS]
    if unknown := [name for name in names if name not in ("op", *MODELS)]:
        return _fail(f"no model {unknown[0]!r}; there are op, {', '.join(MODELS)}")
    shapes = list(itertools.product(arguments.hidden, arguments.dtypes))
    cases = [
        bench.Case(model, arguments.layers, batch, loop, *shape)
        for model in names
        for shape in (shapes if model == "op" else [()])
        for batch in arguments.batches
        for loop in arguments.loops
    ]
    profiled = arguments.profile
    rows = bench.run(cases, arguments.devices, arguments.rounds, profiled, _progress)
    try:
        for i, row in enumerate(rows):
            _progress("")
            for text in () if i else (*bench.notes(row), "", *bench.header()):
                print(text, flush=True)
            for text in (bench.line(row), *bench.profile_lines(row)):
                print(text, flush=True)
            if arguments.json:
                with arguments.json.open("a") as file:
                    print(json.dumps(dataclasses.asdict(row)), file=file)
    except RuntimeError as error:
        print(f"oneshot: {error}", file=sys.stderr)
        return 1
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from oneshot import compare

    program, *rest = arguments.program
    if not Path(program).is_file():
        return _fail(f"no such file: {program}")
    if arguments.emulate:
        os.environ |= emulation.environment(arguments.emulate, os.environ)
    if arguments.rounds < 2:
        return _fail("--rounds: two at least, as runs differ by themselves")
    try:
        print(compare.compare(Path(program), rest, arguments.rounds))
    except compare.CompareError as error:
        return _fail(error)
    return 0


def _timeline(arguments: argparse.Namespace) -> int:
    from oneshot.bench import timeline

    try:
        if arguments.traces[0].is_file():
            events = timeline.from_json(arguments.traces[0].read_text())
        else:
            modules = report.load(arguments.dump) if arguments.dump else ()
            events = timeline.excerpt(timeline.load(arguments.traces, modules))
        if arguments.json:
            arguments.json.write_text(timeline.to_json(events))
    except (OSError, ValueError) as error:
        return _fail(error)
    print("\n".join(timeline.svg(events)))
    return 0


def _install_xla(arguments: argparse.Namespace) -> int:
    target = libraries.xla_environment() if arguments.environment else arguments.target
    try:
        found = xla_wheel.install(arguments.wheel, target and target.absolute())
    except xla_wheel.InstallError as error:
        return _fail(error)
    print(f"XLA's libraries are in {found}")
    if found not in libraries.xla_places():
        print(f"Oneshot finds them there with ONESHOT_XLA_DIR={shlex.quote(str(found))}")
    return 0


def _add_compare(commands: Any) -> None:
    against = commands.add_parser(
        "compare", help="run a program without and with Oneshot: times and outputs of its steps"
    )
    against.add_argument("--rounds", type=int, default=3, help="runs of each (default 3)")
    against.add_argument("--emulate", type=int, metavar="N", help="as of run; times say nothing")
    against.add_argument("program", nargs=argparse.REMAINDER, help="a script and its arguments")
    against.set_defaults(function=_compare)


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="oneshot", description=oneshot.__doc__)
    top.add_argument("--version", action="version", version=oneshot.__version__)
    commands = top.add_subparsers(required=True, metavar="command")

    run = commands.add_parser("run", help="run a Python program with Oneshot on")
    run.add_argument("-m", dest="module", action="store_true", help="the program is a module")
    run.add_argument(
        "--emulate", type=int, metavar="N", help="on N emulated CPU devices in place of GPUs"
    )
    run.add_argument("program", nargs=argparse.REMAINDER, help="a script and its arguments")
    run.set_defaults(function=_run)

    _add_compare(commands)

    check = commands.add_parser("doctor", help="say whether Oneshot can run here, and if not why")
    check.add_argument("--json", action="store_true", help="for programs")
    check.set_defaults(function=_doctor)

    page_help = "write a page with the HLO around each all-reduce"
    why = commands.add_parser("explain", help="say what becomes of the all-reduces of an HLO file")
    why.add_argument("file", type=Path, help="HLO text, or a module that XLA has serialized")
    why.add_argument("--platform", choices=["CUDA", "Host"], default="CUDA")
    why.add_argument("--html", type=Path, metavar="FILE", help=page_help)
    why.set_defaults(function=_explain)

    show = commands.add_parser("report", help="print what was rewritten, and what was not and why")
    show.add_argument("directory", help="what ONESHOT_DUMP_TO named")
    show.add_argument("--html", type=Path, metavar="FILE", help=page_help)
    show.set_defaults(function=_report)

    measure = commands.add_parser("bench", help="time decode steps with and without Oneshot")
    measure.add_argument(
        "--models",
        nargs="+",
        help="op, or names of oneshot.bench.models; default: all of them",
    )
    measure.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    measure.add_argument("--layers", type=int, default=8, help="of each model")
    measure.add_argument("--hidden", nargs="+", type=int, default=[8192], help="of op")
    measure.add_argument(
        "--dtypes", nargs="+", default=["bf16"], choices=list(bench.DTYPES), help="of op"
    )
    loops = ["device", "python", "wait", "moving"]
    measure.add_argument("--loops", nargs="+", default=loops, choices=loops)
    measure.add_argument("--devices", type=int, default=2, help="GPUs to use")
    measure.add_argument("--rounds", type=int, default=11, help="samples of each arm")
    measure.add_argument(
        "--profile", action="store_true", help="show each arm's kernels and graph launches, too"
    )
    measure.add_argument("--json", type=Path, help="file to add every sample to")
    measure.set_defaults(function=_bench)

    draw = commands.add_parser("timeline", help="draw three fused calls from a profile, as SVG")
    draw.add_argument(
        "traces",
        type=Path,
        nargs="+",
        metavar="TRACE",
        help="what jax.profiler.trace has written; of several processes of a machine, each one's; "
        "or what --json has",
    )
    draw.add_argument(
        "--dump", type=Path, metavar="DIR", help="what ONESHOT_DUMP_TO named: says layers on CPU"
    )
    draw.add_argument(
        "--json", type=Path, metavar="FILE", help="write the events, for ui.perfetto.dev"
    )
    draw.set_defaults(function=_timeline)

    xla = commands.add_parser("install-xla", help="fetch XLA's libraries, without TensorFlow")
    where = xla.add_mutually_exclusive_group()
    where.add_argument(
        "--environment", action="store_true", help="for all users of this Python, not for one"
    )
    where.add_argument(
        "--target", type=Path, metavar="DIR", help="a directory for ONESHOT_XLA_DIR to name"
    )
    xla.add_argument("--wheel", type=Path, metavar="FILE", help="a wheel that is already here")
    xla.set_defaults(function=_install_xla)
    return top


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Returns:
      The exit code: 2 for bad usage or a machine that Oneshot can't run on; of `doctor` 1 if there
      is a problem.
    """
    top = parser()
    arguments = top.parse_args(argv)
    if arguments.function in (_run, _compare) and not arguments.program:
        top.error("a script is required")
    try:
        code = arguments.function(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if arguments.function is _run:
            raise
        # Whoever reads has seen enough, `| head` for instance. Python must not flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
