"""One training step of tinygrok beside the same step in PyTorch and its bare matrix products.

    python examples/benchmark.py --workload all       # PyTorch appears where torch is installed
    python examples/benchmark.py --workload small     # three at sizes where overhead shows
    python examples/benchmark.py --workload lcg --device cuda --tf32
    python examples/benchmark.py --scaling            # how a step's time grows with its sizes
    python examples/benchmark.py --kernels compiled   # and beside it with NumPy's kernels
    python examples/benchmark.py --busy 2             # on a machine that is shared with others

All candidates take turns in one process; medians over the turns are compared, so that a machine
whose speed drifts does not favour one of them; between the quartiles lies half of the turns. Losses
and gradients are compared before anything is timed. Peak memory is that of a process of its own. On
a GPU the times are those between device events. On two quiet cores a workload takes about a minute
(the ensemble six), --workload all about a quarter of an hour."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import re  # isort: skip
import subprocess
from pathlib import Path

import _memory as memory
import numpy as np
from _benchmark_busy import neighbours
from _benchmark_flags import check, own_flags
from _benchmark_products import products, products_of_torch
from _benchmark_steps import EVERY, GROUPS, HAS_TORCH, SCALING
from _benchmark_table import OURS, PLAIN, PRODUCTS, THEIR_PRODUCTS, lines, summary, table
from _benchmark_table import candidates as print_candidates
from _benchmark_times import interleaved, turns

from tinygrok.disk.reader import read_json, refused
from tinygrok.engine.device import Device
from tinygrok.training.progress import Progress


def arguments(argv=None):
    p = cli.parser("benchmark", __doc__)
    add = p.add_argument
    count = cli.integer(1, 10**4)
    what = "what to time; all: those of usual sizes; small: three at small sizes"
    resume = "of --workload all or small, time those that are not in --out"
    add("--workload", default="mlp", choices=[*GROUPS, *EVERY], help=what)
    add("--scaling", action="store_true", help="step times over sizes, with fitted exponents")
    add("--only", metavar="CANDIDATE", help="run it alone and print its peak memory in MB")
    add("--repeats", type=count, default=20, help="turns of every candidate")
    steps = "steps a turn, fewer where they are slow; the first is not counted"
    add("--steps", type=cli.integer(2, 10**4), default=5, help=steps)
    busy = "time beside N busy processes, each of one thread"
    add("--busy", type=cli.integer(0, cli.MOST_WORKERS), default=0, metavar="N", help=busy)
    add("--p", type=cli.integer(2, 1000), default=97, help="modulus")
    add("--width", type=cli.integer(1, 10**6), default=500, help="neurons on modular arithmetic")
    add("--resume", action="store_true", help=resume)
    args = cli.parse(p, argv, {"repeats": 3, "p": 31, "width": 100})
    check(args)
    return args


def peak_memory(args, name):
    """Peak memory in MB of a process that runs one candidate alone, libraries included.

    None where it cannot be had."""
    done = subprocess.run(own_flags(args, __file__, only=name), capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def peak_of_this_process(dev, name):
    if dev.kind == "cuda" and name == OURS:
        return dev.xp.get_default_memory_pool().total_bytes() / 2**20
    if dev.kind == "cuda":
        import torch

        return torch.cuda.max_memory_reserved() / 2**20
    # Not getrusage: its maximum starts from the parent's at the moment of the fork.
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def alone(args, dev):
    """Run one candidate for its peak memory, and print that."""
    workload = EVERY.get(args.workload)
    twins = HAS_TORCH and args.only != OURS
    candidates = workload(args, dev, twins) if workload else {}
    if args.only not in candidates:
        known = ", ".join(candidates) or "a --workload first"
        raise cli.InputError(f"--only {args.only!r}: choose {known}")
    step = candidates[args.only]()
    for _ in range(5):
        step()
    print(peak_of_this_process(dev, args.only))


def one(args, dev):
    """Time and memory of all candidates of a workload: its part of run.json."""
    makers = EVERY[args.workload](args, dev, HAS_TORCH)
    candidates = {name: make() for name, make in makers.items()}
    if dev.kernels == "compiled":
        plain = Device("cpu", np, dev.dtype, dev.threads)
        candidates[PLAIN] = EVERY[args.workload](args, plain, False)[OURS]()
    bare, work = products(dev, candidates[OURS])
    if work:
        candidates[PRODUCTS] = bare
    if work and HAS_TORCH:
        candidates[THEIR_PRODUCTS] = products_of_torch(dev, candidates[OURS])
    progress = Progress(args.repeats, every=10.0, unit="turn")
    of_what = f"of {len(candidates)} candidates"
    with neighbours(args.busy):
        when = (args.repeats, args.steps, lambda turn: progress(turn, of_what))
        timed = turns(dev, candidates, *when)
    progress.close()
    peaks = {}
    if Path("/proc/self/status").exists():
        # A compiled one's peak is that of the compiler.
        peaks = {name: peak_memory(args, name) for name in makers if "compiled" not in name}
    result = summary(timed, work, peaks)
    print_candidates(args.workload, result, peaks, dev.kernels, args.busy)
    return result


def everything(args, out):
    """Every workload of a group in a process of its own: one that fails reports, and the others go
    on."""
    results = {}
    for name in GROUPS[args.workload]:
        file = out / cli.PACKS / name / "run.json"
        flags = own_flags(args, __file__, workload=name, out=file.parent)
        if (args.resume and file.exists()) or subprocess.run(flags).returncode == 0:
            with refused(file):
                part = read_json(file)["results"]
                lines(part, args.kernels)  # one that lacks something is told here
                results |= part
        else:
            print(f"{name}: FAILED")
    return results


def slope(x, y):
    """That of a straight line through the last three points."""
    return float(np.polyfit(x[-3:], y[-3:], 1)[0])


def scaling(args, dev):
    """Step times over a range of one size each; exponents beside those of the products."""
    results = {}
    heading = f"{'tinygrok':<12}{'sizes':<24}{'ms a step':<32}{'exponent':>10}{'of products':>13}"
    print(f"{heading}   leading terms")
    for name, (workload, sizes, theory) in SCALING.items():
        sizes = sizes[:3] if args.quick else sizes
        seconds = []
        work = []
        for size in sizes:
            step = workload(args, dev, False, **{name: size})[OURS]()
            work.append(products(dev, step)[1])
            timed = interleaved(dev, {name: step}, args.repeats, args.steps)
            seconds.append(timed[name])
        row = {
            "sizes": list(sizes),
            "milliseconds": [1e3 * s for s in seconds],
            "exponent": slope(np.log(sizes), np.log(seconds)),
            "exponent_of_products": slope(np.log(sizes), np.log(work)),
        }
        times = " ".join(f"{ms:.2f}" for ms in row["milliseconds"])
        print(f"{name:<12}{' '.join(map(str, sizes)):<24}{times:<32}", end="")
        print(f"{row['exponent']:>10.2f}{row['exponent_of_products']:>13.2f}   {theory}")
        results[name] = row
    return results


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    memory.require(experiment.dev, **memory.step(experiment.dev, args))
    if args.only:
        return alone(args, experiment.dev)
    several = args.workload in GROUPS and not args.scaling
    # One alone has nothing to go on from when it is interrupted.
    out = experiment.open_sweep() if several else experiment.open(state="run.json")
    if args.scaling:
        results = {"scaling": scaling(args, experiment.dev)}
    elif several:
        results = everything(args, out)
    else:
        results = {args.workload: one(args, experiment.dev)}
    experiment.write(results)
    if not args.scaling:
        table(results, experiment.dev, args.busy)
    print(f"results in {out}")
    return int(len(results) < len(GROUPS.get(args.workload, ())))


if __name__ == "__main__":
    cli.main(main)
