"""One training step of tinygrok beside the same step in PyTorch and its bare matrix products.

    python examples/benchmark.py --workload all       # PyTorch appears where torch is installed
    python examples/benchmark.py --workload lcg --device cuda --tf32
    python examples/benchmark.py --scaling            # how a step's time grows with its sizes
    python examples/benchmark.py --kernels compiled   # and beside it with NumPy's kernels

All candidates take turns in one process; medians over the turns are compared, so that a machine
whose speed drifts does not favour one of them. Losses and gradients are compared before anything is
timed. Peak memory is that of a process of its own. On a GPU the times are those between device
events."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import re  # isort: skip
import subprocess
from pathlib import Path

import _memory as memory
import numpy as np
from _benchmark_flags import check, own_flags
from _benchmark_steps import HAS_TORCH, SCALING, WORKLOADS, best_torch
from _benchmark_times import interleaved

from tinygrok.disk.reader import read_json, refused
from tinygrok.engine.device import Device
from tinygrok.engine.gemm import matmul

PLAIN = "tinygrok, NumPy's kernels"


def arguments(argv=None):
    p = cli.parser("benchmark", __doc__)
    add = p.add_argument
    count = cli.integer(1, 10**4)
    add("--workload", default="mlp", choices=["all", *WORKLOADS], help="what to time")
    add("--scaling", action="store_true", help="step times over sizes, with fitted exponents")
    add("--only", metavar="CANDIDATE", help="run it alone and print its peak memory in MB")
    add("--repeats", type=count, default=15, help="turns of every candidate, at most")
    add("--steps", type=count, default=5, help="steps a turn; the first is not counted")
    add("--p", type=cli.integer(2, 1000), default=97, help="modulus")
    add("--width", type=cli.integer(1, 10**6), default=500, help="neurons on modular arithmetic")
    add("--resume", action="store_true", help="of all workloads, time those that are not in --out")
    args = cli.parse(p, argv, {"repeats": 3, "p": 31, "width": 100})
    check(args)
    return args


def products(dev, step):
    """(the matrix products of a step alone, spread over the threads; their multiply-adds)."""
    threads = dev.threads
    dev.threads = 1
    dev.products = []
    step()
    calls = dev.products
    dev.threads = threads
    dev.products = None
    work = [np.prod(a) * b[-2 if tb else -1] for a, b, _, tb in calls]
    total = float(sum(work))
    arrays = {}

    def operand(thread, role, shape):
        """One array for each shape that a thread meets."""
        key = (thread, role, shape)
        if key not in arrays:
            arrays[key] = dev.to_device(np.full(shape, 0.5))
        return arrays[key]

    parts = [[] for _ in range(threads)]  # a run of the calls for every thread
    reached = np.cumsum(work, dtype=float)
    for done, (a, b, ta, tb) in zip(reached, calls, strict=True):
        i = int(min(done * threads // max(total, 1), threads - 1))
        lead = a[:-2] if len(a) > len(b) else b[:-2]
        shape = (*lead, a[-1 if ta else -2], b[-2 if tb else -1])
        operands = [operand(i, "a", a), operand(i, "b", b), operand(i, "out", shape)]
        parts[i].append((*operands, ta, tb))

    def run(part):
        for a, b, out, ta, tb in part:
            matmul(dev, a, b, out, ta=ta, tb=tb)

    return lambda: dev.map(run, parts), total


def peak_memory(args, name):
    """Peak memory in MB of a process that runs one candidate alone, libraries included.

    None where it cannot be had."""
    done = subprocess.run(own_flags(args, __file__, only=name), capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def peak_of_this_process(dev, name):
    if dev.kind == "cuda" and name == "tinygrok":
        return dev.xp.get_default_memory_pool().total_bytes() / 2**20
    if dev.kind == "cuda":
        import torch

        return torch.cuda.max_memory_reserved() / 2**20
    # Not getrusage: its maximum starts from the parent's at the moment of the fork.
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def alone(args, dev):
    """Run one candidate for its peak memory, and print that."""
    workload = WORKLOADS.get(args.workload)
    twins = HAS_TORCH and args.only != "tinygrok"
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
    makers = WORKLOADS[args.workload](args, dev, HAS_TORCH)
    candidates = {name: make() for name, make in makers.items()}
    if dev.kernels == "compiled":
        plain = Device("cpu", np, dev.dtype, dev.threads)
        candidates[PLAIN] = WORKLOADS[args.workload](args, plain, False)["tinygrok"]()
    bare, work = products(dev, candidates["tinygrok"])
    timed = candidates | ({"matrix products": bare} if work else {})
    seconds = interleaved(dev, timed, args.repeats, max(args.steps, 2))
    memory = {}
    if Path("/proc/self/status").exists():
        # A compiled one's peak is that of the compiler.
        memory = {name: peak_memory(args, name) for name in makers if "compiled" not in name}
    ours = seconds["tinygrok"]
    print(f"{args.workload:<28}{'ms a step':>10}{'tinygrok = 1':>14}{'peak MB':>10}")
    for name, s in seconds.items():
        print(f"{name:<28}{1e3 * s:>10.2f}{s / ours:>14.2f}{memory.get(name) or np.nan:>10.0f}")
    their_memory = [mb for name, mb in memory.items() if name.startswith("torch") and mb]
    return {
        "milliseconds": {name: 1e3 * s for name, s in seconds.items()},
        "gigaflops": 2e-9 * work / ours,
        "ratio_to_floor": ours / seconds["matrix products"] if work else None,
        "best_torch": best_torch(seconds),
        "ratio_to_plain": ours / seconds[PLAIN] if PLAIN in seconds else None,
        "peak_mb": memory.get("tinygrok"),
        "torch_peak_mb": min(their_memory, default=None),
    }


def everything(args, out):
    """Every workload in a process of its own: one that fails reports, and the others go on."""
    results = {}
    for name in WORKLOADS:
        file = out / cli.PACKS / name / "run.json"
        flags = own_flags(args, __file__, workload=name, out=file.parent)
        if (args.resume and file.exists()) or subprocess.run(flags).returncode == 0:
            with refused(file):
                results |= read_json(file)["results"]
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
            step = workload(args, dev, False, **{name: size})["tinygrok"]()
            work.append(products(dev, step)[1])
            timed = interleaved(dev, {name: step}, min(args.repeats, 5), args.steps)
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


def rounded(x, digits):
    return "-" if x is None else f"{x:.{digits}f}"


def table(results):
    speeds = f"{'ms a step':>10}{'to NumPy':>10}{'to PyTorch':>12}{'to products':>13}{'GFLOP/s':>9}"
    print(f"\n{'':<18}{speeds}{'peak MB':>9}{'PyTorch MB':>12}")
    for name, r in results.items():
        to_torch = rounded(r["best_torch"].get("ratio"), 2)
        to_floor = rounded(r["ratio_to_floor"], 2)
        to_plain = rounded(r["ratio_to_plain"], 2)
        speeds = f"{r['milliseconds']['tinygrok']:>10.2f}{to_plain:>10}{to_torch:>12}{to_floor:>13}"
        memory = f"{rounded(r['peak_mb'], 0):>9}{rounded(r['torch_peak_mb'], 0):>12}"
        print(f"{name:<18}{speeds}{r['gigaflops']:>9.0f}{memory}")


def main(argv=None):
    args = arguments(argv)
    experiment = cli.Experiment(args)
    memory.require(experiment.dev, **memory.step(experiment.dev, args))
    if args.only:
        return alone(args, experiment.dev)
    out = experiment.open_sweep()
    if args.scaling:
        results = {"scaling": scaling(args, experiment.dev)}
    elif args.workload == "all":
        results = everything(args, out)
    else:
        results = {args.workload: one(args, experiment.dev)}
    experiment.write(results)
    if not args.scaling:
        table(results)
    print(f"results in {out}")
    return int(args.workload == "all" and len(results) < len(WORKLOADS))


if __name__ == "__main__":
    cli.main(main)
