"""Benchmark: one training step of tinygrok, the same step in PyTorch, and the step's bare matrix
products.

    python examples/benchmark.py --workload all             # PyTorch columns appear where torch is installed
    python examples/benchmark.py --workload lcg --device cuda --tf32
    python examples/benchmark.py --scaling                  # how a step's time grows with its sizes

All candidates take turns in one process; medians over the turns are compared, so that a machine
whose speed drifts does not favour one of them. Losses and gradients are compared before anything is
timed. Peak memory is that of a process of its own. On a GPU the times are those between device
events."""

import time

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import importlib.util  # isort: skip
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from _benchmark_steps import WORKLOADS, ensemble, lcg, mlp

from tinygrok.engine.gemm import matmul

SECONDS = 15.0  # of turns, about, for a workload
SCALING = {  # what grows: (workload, its sizes, the leading terms of the work)
    "p": (mlp, (31, 61, 97, 139), "p^3: p^2 / 2 rows, p x width products each"),
    "width": (mlp, (125, 250, 500, 1000), "width^1"),
    "members": (ensemble, (1, 4, 12, 25), "members^1"),
    "batch": (lcg, (2, 4, 8, 16), "batch^1"),
    "context": (lcg, (64, 128, 256, 512), "context^1, attention context^2"),
    "channels": (lcg, (64, 128, 256, 512), "channels^1, inside the block channels^2"),
}


def arguments(argv=None):
    p = cli.parser("benchmark", __doc__.splitlines()[0])
    p.add_argument("--workload", default="mlp", choices=["all", *WORKLOADS], help="what to time")
    p.add_argument(
        "--scaling",
        action="store_true",
        help="tinygrok's step over a range of sizes, with fitted exponents",
    )
    p.add_argument(
        "--only",
        default=None,
        metavar="CANDIDATE",
        help="run this one alone and print its peak memory in MB",
    )
    p.add_argument(
        "--repeats", type=cli.integer(), default=15, help="turns of every candidate, at most"
    )
    p.add_argument(
        "--steps", type=cli.integer(), default=5, help="steps a turn; the first is not counted"
    )
    p.add_argument("--p", type=cli.integer(2, 1000), default=97, help="modulus")
    p.add_argument(
        "--width",
        type=cli.integer(),
        default=500,
        help="hidden neurons of the networks on modular arithmetic",
    )
    return cli.parse(p, argv, {"repeats": 3, "p": 31, "width": 100})


def products(dev, step):
    """(the matrix products of a step alone, spread over the threads; their multiply-adds)."""
    threads, dev.threads, dev.products = dev.threads, 1, []
    step()
    calls, dev.threads, dev.products = dev.products, threads, None
    work = np.cumsum([np.prod(a) * b[-2 if tb else -1] for a, b, _, tb in calls], dtype=float)
    share = np.minimum(
        work * threads // max(work[-1:].sum(), 1), threads - 1
    )  # a run of the calls for every thread
    made = {}

    def operand(thread, role, shape):  # one array for each shape that a thread meets
        if (thread, role, shape) not in made:
            made[thread, role, shape] = dev.to_device(np.full(shape, 0.5))
        return made[thread, role, shape]

    parts = [[] for _ in range(threads)]
    for i, (a, b, ta, tb) in zip(share.astype(int), calls, strict=True):
        lead = a[:-2] if len(a) > len(b) else b[:-2]
        out = operand(i, "out", (*lead, a[-1 if ta else -2], b[-2 if tb else -1]))
        parts[i].append((operand(i, "a", a), operand(i, "b", b), out, ta, tb))

    def run(part):
        for a, b, out, ta, tb in part:
            matmul(dev, a, b, out, ta=ta, tb=tb)

    return lambda: dev.map(run, parts), work[-1:].sum()


def clock(dev):
    """time() -> a mark; seconds(mark, mark). A GPU is not waited for until the marks are read."""
    if dev.kind == "cpu":
        return time.perf_counter, lambda a, b: b - a

    def mark():
        event = dev.xp.cuda.Event()
        event.record()
        return event

    def seconds(a, b):
        b.synchronize()
        return dev.xp.cuda.get_elapsed_time(a, b) / 1e3

    return mark, seconds


def interleaved(dev, candidates, repeats, steps):
    """Median seconds of a step of every candidate, over turns taken in a circle; 50 ms of rest
    before a turn let the spinning threads of the candidate before go to sleep."""
    (mark, seconds), times, began = (
        clock(dev),
        {name: [] for name in candidates},
        time.perf_counter(),
    )
    for turn in range(repeats + 1):
        for name, step in candidates.items():
            time.sleep(0.05)
            marks = [mark()]
            for _ in range(steps):
                step()
                marks.append(mark())
            if (
                turn
            ):  # the first turn warms up (and compiles), the first step of a turn fills the cache
                times[name] += [seconds(a, b) for a, b in zip(marks[1:], marks[2:], strict=False)]
        if turn > 2 and time.perf_counter() - began > SECONDS:
            break
    return {name: float(np.median(t)) for name, t in times.items()}


def own_flags(args, **changed):
    """The command line of a process with the same settings."""
    names = ("workload", "device", "dtype", "seed", "p", "width", "repeats", "steps")
    given = {name: getattr(args, name) for name in names} | {"threads": args.threads} | changed
    flags = [
        word
        for name, value in given.items()
        if value is not None
        for word in (f"--{name}", str(value))
    ]
    return [sys.executable, __file__, *flags, *(["--tf32"] if args.tf32 else [])]


def peak_memory(args, name):
    """Peak memory in MB of a process that runs one candidate alone, libraries included; None where
    it cannot be had."""
    done = subprocess.run(own_flags(args, only=name), capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def peak_of_this_process(dev, name):
    if dev.kind == "cuda" and name == "tinygrok":
        return dev.xp.get_default_memory_pool().total_bytes() / 2**20
    if dev.kind == "cuda":
        import torch

        return torch.cuda.max_memory_reserved() / 2**20
    # Not getrusage: its maximum starts from the parent's at the moment of the fork.
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def one(args, dev):
    """Time and memory of all candidates of a workload: its part of run.json."""
    torch = importlib.util.find_spec("torch") is not None
    candidates = {name: make() for name, make in WORKLOADS[args.workload](args, dev, torch).items()}
    bare, work = products(dev, candidates["tinygrok"])
    timed = candidates | ({"matrix products": bare} if work else {})
    seconds = interleaved(dev, timed, args.repeats, max(args.steps, 2))
    ours, best = (
        seconds["tinygrok"],
        min((s for n, s in seconds.items() if n.startswith("torch")), default=None),
    )
    alone = (
        [name for name in candidates if "compiled" not in name]
        if Path("/proc/self/status").exists()
        else []
    )
    memory = {
        name: peak_memory(args, name) for name in alone
    }  # a compiled one's peak is that of the compiler
    print(f"{args.workload:<28}{'ms a step':>10}{'tinygrok = 1':>14}{'peak MB':>10}")
    for name, s in seconds.items():
        print(f"{name:<28}{1e3 * s:>10.2f}{s / ours:>14.2f}{memory.get(name) or np.nan:>10.0f}")
    return {
        "milliseconds": {name: 1e3 * s for name, s in seconds.items()},
        "gigaflops": 2e-9 * work / ours,
        "ratio_to_floor": ours / seconds["matrix products"] if work else None,
        "ratio_to_best_torch": None if best is None else ours / best,
        "peak_mb": memory.get("tinygrok"),
        "torch_peak_mb": min(
            (m for n, m in memory.items() if n.startswith("torch") and m), default=None
        ),
    }


def everything(args, out):
    """Every workload in a process of its own: one that fails reports, and the others go on."""
    results = {}
    for name in WORKLOADS:
        where = out / name
        if subprocess.run(own_flags(args, workload=name, out=where)).returncode == 0:
            results |= json.loads((where / "run.json").read_text())["results"]
        else:
            print(f"{name}: FAILED")
    return results


def scaling(args, dev):
    """Step times over a range of one size each; slopes in logarithms over the three largest sizes,
    beside those of the work."""
    results = {}
    print(
        f"{'tinygrok':<12}{'sizes':<24}{'ms a step':<32}{'exponent':>10}{'of products':>13}   leading terms"
    )
    for name, (workload, sizes, theory) in SCALING.items():
        seconds, work = [], []
        sizes = sizes[:3] if args.quick else sizes
        for size in sizes:
            step = workload(args, dev, False, **{name: size})["tinygrok"]()
            work.append(products(dev, step)[1])
            seconds.append(interleaved(dev, {name: step}, min(args.repeats, 5), args.steps)[name])
        exponents = [
            float(np.polyfit(np.log(sizes[-3:]), np.log(y[-3:]), 1)[0]) for y in (seconds, work)
        ]
        results[name] = {"sizes": list(sizes), "milliseconds": [1e3 * s for s in seconds]}
        results[name] |= {"exponent": exponents[0], "exponent_of_products": exponents[1]}
        times = " ".join(f"{1e3 * s:.2f}" for s in seconds)
        print(
            f"{name:<12}{' '.join(map(str, sizes)):<24}{times:<32}{exponents[0]:>10.2f}{exponents[1]:>13.2f}   {theory}"
        )
    return results


def main(argv=None):
    args = arguments(argv)
    dev = cli.device(args)
    if args.only:
        candidates = (
            WORKLOADS[args.workload](args, dev, args.only != "tinygrok")
            if args.workload in WORKLOADS
            else {}
        )
        if args.only not in candidates:
            raise cli.InputError(
                f"--only {args.only!r}: choose {', '.join(candidates) or 'a --workload first'}"
            )
        step = candidates[args.only]()
        for _ in range(5):
            step()
        print(peak_of_this_process(dev, args.only))
        return None
    out, began = cli.output_folder(args), time.perf_counter()
    if args.scaling:
        results = {"scaling": scaling(args, dev)}
    elif args.workload == "all":
        results = everything(args, out)
    else:
        results = {args.workload: one(args, dev)}
    cli.write_run(out, args, dev, time.perf_counter() - began, results)
    if not args.scaling:
        table(results)
    print(f"results in {out}")
    return int(args.workload == "all" and len(results) < len(WORKLOADS))


def table(results):
    text = lambda x, digits: f"{x:.{digits}f}" if x is not None else "-"  # noqa: E731
    print(
        f"\n{'':<18}{'ms a step':>10}{'to PyTorch':>12}{'to products':>13}{'GFLOP/s':>9}{'peak MB':>9}{'PyTorch MB':>12}"
    )
    for name, r in results.items():
        ratios = f"{text(r['ratio_to_best_torch'], 2):>12}{text(r['ratio_to_floor'], 2):>13}{r['gigaflops']:>9.0f}"
        memory = f"{text(r['peak_mb'], 0):>9}{text(r['torch_peak_mb'], 0):>12}"
        print(f"{name:<18}{r['milliseconds']['tinygrok']:>10.2f}{ratios}{memory}")


if __name__ == "__main__":
    cli.main(main)
