# SPDX-License-Identifier: Apache-2.0
"""Everything that needs GPUs: the kernel, the model with and without Oneshot, tools and examples.

Needs `oneshot` on the path and the built binaries of cuda/. Writes what it runs, and what that
prints, to a file, and exits with 0 if all of it passed. On one GPU, ranks are processes that share
it (process_group.py): all but the benchmarks runs, and no time says anything about NVLink.

  python tests/gpu/run.py --kernels bazel-bin/cuda [--only PART...]
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from oneshot import libraries

sys.path.insert(0, str(Path(__file__).parents[1]))
import process_group
from harness import (
    ARMS,
    EXAMPLES,
    MODELS,
    TESTS,
    Log,
    group,
    llama,
    unmodified,
    wait_for,
    worker,
    xla_flags,
)

# Of the kernels of a graph, a profiler knows nothing but the name.
NO_GRAPHS = "--xla_gpu_enable_command_buffer="


# For numbers, not for times.
UNTUNED = xla_flags("--xla_gpu_autotune_level=0")

# Small enough for float64 on the host.
MODEL = {"layers": 4, "hidden": 1024, "heads": 16, "kv-heads": 8, "ffn": 2816, "tp": 2}
# Oneshot's error may be this much larger than stock's: GEMMs are autotuned, and a run of stock
# differs from the next by as much.
ERROR_RATIO = 1.05


def flags(model: dict[str, object]) -> list[str]:
    """The command line of a model."""
    return [part for name, value in model.items() for part in (f"--{name}", str(value))]


def environment(log: Log, commit: str) -> None:
    """Says what was measured, and on what."""
    log.write(f"commit {commit}")
    log.run(["nvidia-smi", "--query-gpu=index,name,driver_version,memory.total", "--format=csv"])
    log.run(["nvidia-smi", "topo", "-m"])
    for package in ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "oneshot-xla"):
        with contextlib.suppress(Exception):
            from importlib import metadata

            log.write(f"{package} {metadata.version(package)}")


def nvrtc() -> list[str]:
    """Where the programs without Python find the run-time compiler."""
    directory = libraries.find_nvrtc()
    return ["--nvrtc", str(directory)] if directory else []


def gpu_counts() -> list[int]:
    """One GPU, then powers of two, then all."""
    gpus = process_group.count_gpus()
    return sorted({1, gpus} | {count for count in (2, 4) if count <= gpus})


def kernels(log: Log, binaries: Path) -> None:
    """The kernel without XLA: virtual ranks on one GPU, on two and on all; its time in a graph."""
    for count in gpu_counts():
        devices = ",".join(map(str, range(count)))
        # Ranks with a GPU of their own, as in use, meet more often.
        replays = ["--replays", "100000"] if count > 2 else []
        test = [
            str(binaries / "device_tests" / "protocol_test"),
            "--devices",
            devices,
            *replays,
            *nvrtc(),
        ]
        code, _ = log.run(test)
        log.check(f"protocol test on devices {devices}", code == 0)
        if count > 1:
            code, _ = log.run(
                [str(binaries / "bench" / "kernel_bench"), "--devices", devices, *nvrtc()]
            )
            log.check(f"kernel benchmark on devices {devices}", code == 0)


def sanitizer(log: Log, binaries: Path) -> None:
    """The kernel under compute-sanitizer."""
    tool = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if tool is None:
        log.check("compute-sanitizer is installed", passed=False)
        return
    devices = "0,1" if process_group.count_gpus() > 1 else "0"
    test = [
        str(binaries / "device_tests" / "protocol_test"),
        "--quick",
        "--devices",
        devices,
        *nvrtc(),
    ]
    for check in ("memcheck", "racecheck", "synccheck", "initcheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9"]
        if check == "memcheck":  # CUDA's own errors are the test's affair: some are expected
            command += ["--report-api-errors", "no"]
        # One process each: once memcheck has seen many kernels, it keeps the launch of a graph
        # from returning before the graph ends, which it can't before the other rank's launch.
        for part in ("workspaces", "calls", "invariance", "late_rank", "replays"):
            code, out = log.run([*command, *test, "--only", part])
            passed = code == 0 and " SUMMARY: 0 " in out
            log.check(f"compute-sanitizer {check}, {part}", passed)


def layers(log: Log, what: str, layout: process_group.Layout, **environ: str) -> None:
    """The layers of workers/multiprocess.py: fused, right, the same on all ranks."""
    command = [worker("multiprocess")]
    ends = group(log, what, command, layout, ARMS["oneshot"] | environ)
    fused = all("3 of 3 all-reduces fused" in end and "right" in end for end in ends)
    bits = re.findall(r"bits (\w+)", "".join(ends))
    same = len(bits) == sum(map(len, layout)) and len(set(bits)) == 1
    log.check(f"{what}: fused, right, the same bits", bool(ends) and fused and same)


def processes(log: Log) -> None:
    """Two processes with a GPU each: whole, late, stopped for a while, and killed."""
    two = process_group.one_each(2)
    layers(log, "two processes", two)
    layers(log, "one of them late by 10 s", two, WORKER_LATE_S="10")
    some_seconds = "20000"

    def started(**environ: str):
        return process_group.started([worker("multiprocess")], two, ARMS["oneshot"] | environ)

    with started(ONESHOT_TIMEOUT_S="20", WORKER_STEPS=some_seconds) as (first, second):
        wait_for(second, "step 300")
        second.send_signal(signal.SIGSTOP)
        time.sleep(5)
        second.send_signal(signal.SIGCONT)
        ends = [first.communicate(timeout=120), second.communicate(timeout=120)]
        log.write("\n".join(out + err for out, err in ends))
        log.check("one stopped for 5 s", all("right" in out for out, _ in ends))
    with started(ONESHOT_TIMEOUT_S="4", WORKER_STEPS="1000000000") as (first, second):
        wait_for(second, "step 300")
        second.kill()
        start = time.monotonic()
        try:
            _, err = first.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            first.kill()
            _, err = first.communicate()
            err += "\nhad to be killed"
        seconds = time.monotonic() - start
        log.write(f"{err}\nended {seconds:.1f} s after the kill with {first.returncode}")
        log.check(
            "one killed: the other ends and says why",
            first.returncode == 1
            and re.search(r"rank 0 waited 4\.\d s for rank 1 in all-reduce number \d+ at", err)
            is not None,
        )


def as_stock(log: Log, part: str, layout: process_group.Layout) -> None:
    """A part of workers/concurrency.py, which has to compute the same bits with Oneshot."""
    what = f"{part}, {sum(map(len, layout))} ranks in {len(layout)} processes"
    found: list[list[dict[str, np.ndarray]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for arm in ("stock", "oneshot"):
            command = [worker("concurrency"), part, f"{scratch}/{arm}"]
            if not group(log, f"{what}, {arm}", command, layout, ARMS[arm] | UNTUNED):
                return
            found.append(arrays_of(f"{scratch}/{arm}", len(layout)))
    same = True
    for stock, ours in zip(*found, strict=True):
        same &= stock.keys() == ours.keys()
        same &= all(np.array_equal(want, ours[name]) for name, want in stock.items())
    log.check(f"{what}: the same bits", same)


def arrays_of(file: str, processes: int) -> list[dict[str, np.ndarray]]:
    """What each process of a group has written."""
    result = []
    for number in range(processes):
        with np.load(f"{file}.{number}") as arrays:
            result.append(dict(arrays))
    return result


def ranks(log: Log) -> None:
    """Groups of up to eight, subgroups and meshes among them; some processes with two GPUs."""
    gpus = process_group.count_gpus()
    counts = {3, 4, 8} | set(range(3, gpus + 1))  # two are what `processes` begins with
    layouts = {f"{count} ranks": process_group.one_each(count) for count in sorted(counts)}
    if gpus > 1:
        # With other numbers of GPUs in each process, XLA itself compiles nothing.
        layouts |= {"2 processes with 2 GPUs": [[0, 1], [0, 1]]}
    for what, layout in layouts.items():
        layers(log, what, layout, WORKER_STEPS="100")
    for part in ("ahead", "meshes"):
        as_stock(log, part, process_group.together(8))


def programs(log: Log) -> None:
    """All ways to write an epilogue, between four ranks: near stock, and the same on all ranks."""
    layout = process_group.one_each(4)
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for arm in ("stock", "oneshot"):
            command = [worker("spellings"), f"{scratch}/{arm}"]
            if not group(log, f"programs, {arm}", command, layout, ARMS[arm] | UNTUNED):
                return
            found[arm] = arrays_of(f"{scratch}/{arm}", len(layout))
    agree = True
    errors: dict[str, float] = {}
    for stock, ours in zip(found["stock"], found["oneshot"], strict=True):
        for name, got in ours.items():
            # Who has the same part of an array, has the same bits.
            agree &= all(np.array_equal(o[name], got) for o in found["oneshot"] if name in o)
            error = np.max(np.abs(got - stock[name])) / np.max(np.abs(stock[name]))
            program = name.partition("/")[0]
            errors[program] = max(errors.get(program, 0.0), float(error))
    for program, error in errors.items():
        log.write(f"{program}: up to {error:.1e} of the largest from stock")
    log.check("programs: the same bits on all ranks", agree)
    # Three roundings to bfloat16, which fall to either side, in each of up to four sums.
    log.check(f"{len(errors)} programs are near stock", max(errors.values()) < 12 * 2**-8)


def model(log: Log) -> None:
    """The unmodified model with and without Oneshot, against float64."""
    with tempfile.TemporaryDirectory() as scratch:
        for extra in ([], ["--scan"], ["--loop", "device"]):
            arguments = [*flags(MODEL), "--dtype", "bf16", "--steps", "16", *extra]
            files = []
            for arm in ("stock", "oneshot"):
                files.append(f"{scratch}/{arm}.npz")
                more = {"ONESHOT_DUMP_TO": f"{scratch}/dump"} if arm == "oneshot" else {}
                what = " ".join([arm, *extra])
                if not llama(log, what, ARMS[arm] | more, *arguments, "--save", files[-1]):
                    return
            code, out = log.run(
                [sys.executable, str(MODELS / "llama_reference.py"), *files, *arguments]
            )
            found = [float(value) for value in re.findall(r"\.npz (\S+)", out)]
            errors = dict(zip(("stock", "oneshot"), found, strict=True))
            stock, ours = errors["stock"], errors["oneshot"]
            log.check(
                f"error against float64 {' '.join(extra)}: {ours} to stock's {stock}",
                code == 0 and ours <= stock * ERROR_RATIO,
            )
        code, out = log.run([sys.executable, "-m", "oneshot", "report", f"{scratch}/dump"])
        log.check("something was fused", code == 0 and "fused: residual+rms_norm" in out)


def concurrency(log: Log) -> None:
    """Two executables from two threads, 64 donating steps ahead, several meshes; as without it."""
    layout = process_group.together(2)
    # Processes would have to dispatch in the same order, which threads do not.
    for part in ("threads", "ahead", "meshes")[len(layout) > 1 :]:
        as_stock(log, part, layout)


def cycles(log: Log, count: int) -> None:
    """Compiles, runs and deletes programs, and takes them from JAX's cache; counts what is held."""
    layout = process_group.together(2)
    with tempfile.TemporaryDirectory() as scratch:
        caching = {
            "JAX_COMPILATION_CACHE_DIR": f"{scratch}/cache",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        ours = {"ONESHOT": "1"}
        for what, environ in (
            ("stock", ARMS["stock"]),
            ("compiled", ours),
            ("compiled and cached", ours | caching),
            ("from the cache", ours | caching),
        ):
            command = [worker("concurrency"), "cycles", f"{scratch}/out", str(count)]
            ends = group(log, f"{count} cycles, {what}", command, layout, environ)
            if not ends:
                return
            growths = [growth_of(end) for end in ends]
            log.write("\n".join(f"growth {growth}" for growth in growths))
            if what == "stock":
                # XLA itself leaves some MiB of each program, where a process has several GPUs.
                stock = growths[0]["MiB of all GPUs"]
                continue
            log.check(
                f"nothing is left of {count} cycles, {what}",
                all(
                    # Anything that each cycle leaves behind is more than half of their number.
                    all(growth[name] < count // 2 for name in ("files", "threads", "mappings"))
                    and growth["bytes of JAX"] == 0
                    and growth["MiB of all GPUs"] < stock + count // 2
                    for growth in growths
                ),
            )


def growth_of(printed: str) -> dict[str, int]:
    """What a process holds after its cycles and did not before."""
    first, *_, last = map(json.loads, re.findall(r'(?m)^{"cycle".*', printed))
    return {name: last[name] - first[name] for name in first}


def repeats(log: Log) -> None:
    """10,000 steps of the model, all of whose logits have the bits of the first 100."""
    for loop in ("python", "device"):
        arguments = [*flags(MODEL), "--dtype", "bf16", "--steps", "100", "--max-len", "128"]
        arguments += ["--loop", loop, "--repeat", "100"]
        ends = llama(log, f"10,000 steps, {loop} loop", ARMS["oneshot"], *arguments)
        same = bool(ends) and all("bit-identical" in end for end in ends)
        log.check(f"10,000 steps, {loop} loop: the same bits", same)


def soak(log: Log, seconds: float) -> None:
    """Random all-reduces between four ranks, some of which stop now and then."""
    command = [worker("soak"), str(seconds), "20000"]
    layout, environ = process_group.one_each(4), {"ONESHOT": "1"}
    log.command(["python", *command], environ, f" on GPUs {layout}")
    chance = random.Random(0)
    stopped: list[float] = []
    start = time.monotonic()
    with process_group.started(command, layout, environ) as workers:
        while all(process.poll() is None for process in workers):
            time.sleep(chance.uniform(0, 6))
            if time.monotonic() - start > seconds:
                break
            one = chance.choice(workers)
            stopped.append(chance.uniform(0, 3))
            one.send_signal(signal.SIGSTOP)
            time.sleep(stopped[-1])
            one.send_signal(signal.SIGCONT)
        ends = [process.communicate(timeout=120) for process in workers]
        codes = [process.returncode for process in workers]
    log.write("\n".join(out + err for out, err in ends))
    log.write(f"stopped {len(stopped)} times, {sum(stopped):.0f} s in all")
    log.check("soak: all processes end well", not any(codes))
    if any(codes):
        return
    counts = [json.loads(out.splitlines()[-1]) for out, _ in ends]
    log.check("soak: the same bits on all ranks", len({count["bits"] for count in counts}) == 1)
    log.check("soak: nothing wrong", not any(count["wrong"] for count in counts))
    log.check("soak: most are fused", all(2 * c["fused"] > c["programs"] > 0 for c in counts))


# Without Oneshot being on.
EXPLAIN = """
import llama_decode, oneshot, pathlib, sys
decoder = llama_decode.Decoder(llama_decode.Config(tp=2, dtype="bf16"))
found = oneshot.explain(decoder._run, decoder.parameters, decoder.new_cache(), decoder.inputs[0])
print(found)
pathlib.Path(sys.argv[1]).write_text(found.html())
"""


def tools(log: Log, folder: Path) -> None:
    """What users see: doctor, explain, the examples, and a profile, of which `folder` gets a part.

    Runs on emulated devices too: with two of them and the XLA_FLAGS of emulation.py.
    """
    python = [sys.executable, "-m", "oneshot"]
    code, out = log.run([*python, "doctor"], {"ONESHOT": "1"})
    gpus = process_group.count_gpus()
    alone = gpus == 1
    log.check("doctor", ("fewer than two GPUs" if alone else "all is well") in out)
    log.check("doctor's exit code", code == alone)
    code, out = log.run([*python, "doctor", "--json"], {"ONESHOT": "1"})
    # Libraries may print before and after it.
    found = json.loads(out[out.index("{") : out.rindex("}") + 1])
    log.check("doctor --json", code == alone and found["ok"] != alone)
    checks = {check["name"]: check for check in found["checks"]}
    if checks["GPU"]["status"] != "note":  # not emulated
        times = [link["microseconds"] for link in checks["links"]["data"] if not link["error"]]
        log.check(f"doctor's links: {times} us", len(times) == gpus**2 and min(times) > 0)
    with tempfile.TemporaryDirectory() as scratch:
        explain = Path(scratch, "explain.py")
        explain.write_text(EXPLAIN)
        path = {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{MODELS}", "ONESHOT": "0"}
        what = "explain(function)"
        ends = unmodified(log, what, path, str(explain), str(folder / "explain.html"))
        found = [re.search(r"(\d+) of (\d+) all-reduces fused", end) for end in ends]
        fused = bool(ends) and all(f and f[1] == f[2] != "0" for f in found)
        log.check(f"{what}: all fused", fused)
        for example in sorted(EXAMPLES.glob("*.py")):
            run_example(log, example, Path(scratch, example.stem))
        hlo = next(Path(scratch, "nnx_server").glob("*.before.hlo"), Path("nothing.hlo"))
        page = Path(scratch, "page.html")
        code, out = log.run([*python, "explain", str(hlo), "--html", str(page)])
        log.check("explain FILE", code == 0 and "4 of 4" in out and "<svg" in page.read_text())
        for kind, flags in (("usual", ""), ("layers", NO_GRAPHS)):
            profile(log, folder / f"profile-{kind}", Path(scratch, kind), flags)


def run_example(log: Log, example: Path, dump: Path) -> None:
    """With Oneshot and without: all all-reduces are fused, and the numbers agree."""
    from oneshot import report

    name = example.name
    stock = unmodified(log, f"{name}, stock", {"ONESHOT": "0"}, str(example))
    ours = {"ONESHOT": "1", "ONESHOT_DUMP_TO": str(dump)}
    ends = unmodified(log, f"{name}, oneshot", ours, str(example))
    if not stock or not ends:
        return
    sites = [site for module in report.load(dump) for site in module.all_reduces]
    for site in sites:
        log.write(f"{site.name}: {site.epilogue or site.reason}")
    table = (EXAMPLES / "README.md").read_text()
    epilogue = re.search(rf"(?m)^\| \[{name}\].*\| `(.+?)` \|$", table)[1]
    log.check(f"{name} is fused", bool(sites) and all(site.fired for site in sites))
    log.check(f"{name} has {epilogue}", any(site.epilogue == epilogue for site in sites))
    numbers = [re.findall(r"(?m)^rms ([\d.]+)$", end) for end in (stock[0], ends[0])]
    if any(numbers):  # a server's tokens may differ: one rounding decides between two
        (left,), (right,) = numbers
        log.check(f"{name}: {right} to {left}", abs(float(right) / float(left) - 1) < 0.01)


def profile(log: Log, result: Path, scratch: Path, flags: str) -> None:
    """The names of layers and epilogues are in a profile; keeps one layer as JSON and SVG."""
    from oneshot import report
    from oneshot.bench import timeline

    environ = {"ONESHOT": "1", "ONESHOT_DUMP_TO": f"{scratch}/dump"} | xla_flags(flags)
    program = [str(TESTS / "profiled.py"), f"{scratch}/trace", f"{EXAMPLES}/nnx_server.py"]
    ends = unmodified(log, result.name, environ, *program)
    if not ends:
        return
    traces = [scratch / "trace" / str(process) for process in range(len(ends))]
    events = timeline.load(traces, report.load(scratch / "dump"))
    fused = [event for event in events if event.fused]
    counts = Counter((event.device, event.name, event.layer) for event in fused)
    for (device, name, layer), count in sorted(counts.items()):
        log.write(f"{count} x {name} on {device}, {layer or 'layer unknown'}")
    epilogue = f"{report.CALL_PREFIX}_residual_rms_norm"
    devices = {event.device for event in fused if event.name.startswith(epilogue)}
    log.check(f"{result.name}: the epilogue, on {', '.join(sorted(devices))}", len(devices) > 1)
    if not fused:
        log.write("\n".join(sorted({f"{event.device}: {event.name}" for event in events})))
        return
    halves = {f"layer_{i}/{half}" for i in range(2) for half in ("attention", "mlp")}
    found = {event.layer for event in fused}
    known = found == halves if flags else found <= halves | {""}
    log.check(f"{result.name}: the layers, {', '.join(sorted(found))}", known)
    part = timeline.excerpt(events)
    result.with_suffix(".json").write_text(timeline.to_json(part))
    result.with_suffix(".svg").write_text("\n".join([*timeline.svg(part), ""]))


def bench(log: Log, rounds: int) -> None:
    """Programs with and without Oneshot; see docs/benchmarks."""
    command = [sys.executable, "-m", "oneshot", "bench", "--rounds", str(rounds)]
    for count in gpu_counts()[1:]:
        # What fills two GPUs as eight are filled by all of it.
        model = "llama-3-8b /4" if count == 2 else "llama-3-70b"
        options = ["--models", "op", model, "--batches", "1", "8", "--profile"]
        code, _ = log.run([*command, *options, "--devices", str(count)])
        log.check(f"benchmark on {count} GPUs", code == 0)


def main() -> int:
    """Runs what was asked for."""
    parts = ["kernels", "sanitizer", "model", "repeats", "processes", "ranks", "programs"]
    parts += ["concurrency", "cycles", "soak", "tools"]
    if process_group.count_gpus() > 1:
        parts += ["bench"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", type=Path, required=True, help="directory of the binaries")
    parser.add_argument("--out", type=Path, default=Path("gpu.txt"), help="what is printed")
    parser.add_argument("--commit", default="", help="where there is no git")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--rounds", type=int, default=3, help="of the benchmark")
    parser.add_argument("--seconds", type=float, default=60, help="of the soak")
    parser.add_argument("--cycles", type=int, default=50, help="of compilation and deletion")
    arguments = parser.parse_args()

    # For the workers, which share modules with the tests.
    paths = [os.environ.get("PYTHONPATH", ""), str(TESTS)]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    log = Log(arguments.out)
    commit = arguments.commit or subprocess.getoutput("git rev-parse HEAD")
    environment(log, commit)
    for part in arguments.only:
        log.write(f"\n=== {part}")
        if part in ("kernels", "sanitizer"):
            globals()[part](log, arguments.kernels)
        elif part == "tools":
            tools(log, arguments.out.parent)
        elif part == "bench":
            bench(log, arguments.rounds)
        elif part == "cycles":
            cycles(log, arguments.cycles)
        elif part == "soak":
            soak(log, arguments.seconds)
        else:
            globals()[part](log)
    log.write(f"\n{len(log.failures)} failed" + "".join(f"\n  {what}" for what in log.failures))
    return 1 if log.failures else 0


if __name__ == "__main__":
    sys.exit(main())
