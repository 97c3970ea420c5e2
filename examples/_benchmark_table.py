"""What benchmark.py says of a workload: its part of run.json, and the tables."""

import importlib.metadata

import numpy as np

OURS = "tinygrok"
PLAIN = "tinygrok, NumPy's kernels"  # beside compiled ones
PRODUCTS = "matrix products"
THEIR_PRODUCTS = "matrix products, PyTorch"

# -- a workload's part of run.json -----------------------------------------------------------------


def summary(timed: dict, work: float, memory: dict) -> dict:
    """Medians and quartiles over the turns, and what follows from them.

    timed    {candidate: seconds of a step, one value for each turn}
    work     multiply-adds of the step's matrix products
    memory   {candidate: peak MB, None where it is not known}"""
    seconds = {name: float(np.median(of_turns)) for name, of_turns in timed.items()}
    quartiles = {}
    for name, of_turns in timed.items():
        low, high = np.quantile(of_turns, (0.25, 0.75))
        quartiles[name] = [1e3 * float(low), 1e3 * float(high)]
    their_memory = [mb for name, mb in memory.items() if name.startswith("torch") and mb]
    return {
        "turns": len(timed[OURS]),
        "milliseconds": {name: 1e3 * s for name, s in seconds.items()},
        "quartiles": quartiles,
        **compared(seconds, OURS, work),
        "numpy_kernels": compared(seconds, PLAIN, work) if PLAIN in seconds else None,
        "products_gigaflops": rate(work, seconds.get(PRODUCTS)),
        "torch_products_gigaflops": rate(work, seconds.get(THEIR_PRODUCTS)),
        "peak_mb": memory.get(OURS),
        "torch_peak_mb": min(their_memory, default=None),
    }


def compared(seconds: dict, ours: str, work: float) -> dict:
    """A step of ours beside its bare products and the best of PyTorch."""
    return {
        "gigaflops": rate(work, seconds[ours]),
        "ratio_to_floor": seconds[ours] / seconds[PRODUCTS] if work else None,
        "best_torch": best_torch(seconds, ours),
    }


def rate(work: float, seconds: float | None) -> float | None:
    """GFLOP/s of the matrix products, two floating point operations a multiply-add."""
    return 2e-9 * work / seconds if work and seconds else None


def torch_version():
    return importlib.metadata.version("torch")


def best_torch(seconds: dict, ours: str) -> dict:
    """The fastest twin of a workload, and what our step takes as a share of its time; {} without
    PyTorch."""
    theirs = [name for name in seconds if name.startswith("torch")]
    if not theirs:
        return {}
    fastest = min(theirs, key=seconds.get)
    return {
        "name": fastest.removeprefix("torch").strip(", "),
        "version": torch_version(),
        "milliseconds": 1e3 * seconds[fastest],
        "ratio": seconds[ours] / seconds[fastest],
    }


# -- tables ----------------------------------------------------------------------------------------


def beside(busy: int) -> str:
    """What else ran: a word for the title of a table."""
    if not busy:
        return ""
    return f", beside {busy} busy process{'es' if busy > 1 else ''}"


def rounded(x: float | None, digits: int) -> str:
    return "-" if x is None else f"{x:.{digits}f}"


def spread(result: dict, name: str) -> str:
    """Median and quartiles of a candidate's step, in milliseconds."""
    low, high = result["quartiles"][name]
    quartiles = f"{low:.2f}-{high:.2f}"
    return f"{result['milliseconds'][name]:>10.2f}{quartiles:>18}"


def candidates(workload: str, result: dict, memory: dict, kernels: str, busy: int) -> None:
    """Every candidate of a workload, relative to our step."""
    print(f"\n{workload}: medians and quartiles over {result['turns']} turns{beside(busy)}")
    print(f"{'':<28}{'ms a step':>10}{'quartiles':>18}{'tinygrok = 1':>14}{'peak MB':>10}")
    milliseconds = result["milliseconds"]
    for name, ms in milliseconds.items():
        label = f"tinygrok, {kernels} kernels" if name == OURS and PLAIN in milliseconds else name
        share = ms / milliseconds[OURS]
        print(f"{label:<28}{spread(result, name)}{share:>14.2f}{rounded(memory.get(name), 0):>10}")


def lines(results: dict, kernels: str) -> list[str]:
    """A line for every workload and kind of kernels: ours beside PyTorch and the bare products, and
    the rate of these in the step, alone (ours), and by PyTorch."""
    found = []
    for workload, result in results.items():
        of_products = [result["products_gigaflops"], result["torch_products_gigaflops"]]
        kinds = {OURS: (kernels, result), PLAIN: ("numpy", result["numpy_kernels"])}
        for name, (kind, row) in kinds.items():
            if row is None:
                continue
            to_torch = rounded(row["best_torch"].get("ratio"), 2)
            line = f"{workload:<20}{kind:<9}{spread(result, name)}"
            line += f"{to_torch:>12}{rounded(row['ratio_to_floor'], 2):>13}"
            for gigaflops in (row["gigaflops"], *of_products):
                line += f"{rounded(gigaflops, 0):>8}"
            if name == OURS:
                line += (
                    f"{rounded(result['peak_mb'], 0):>8}{rounded(result['torch_peak_mb'], 0):>8}"
                )
            found.append(line)
    return found


def table(results: dict, dev, busy: int) -> None:
    """All workloads, and the machine's own rate."""
    heads = f"{'ms a step':>10}{'quartiles':>18}{'to PyTorch':>12}{'to products':>13}"
    rates = f"{'step':>8}{'ours':>8}{'PyTorch':>8}"
    print(f"\n{'':<82}{'GFLOP/s of products':<24}{'peak MB':>16}")
    print(f"{'workload':<20}{'kernels':<9}{heads}{rates}{'ours':>8}{'PyTorch':>8}")
    print("\n".join(lines(results, dev.kernels)))
    if any(result["products_gigaflops"] for result in results.values()):
        print(f"{machine(results, dev)}{beside(busy)}")
    elif busy:
        print(f"all{beside(busy)}")


def machine(results: dict, dev) -> str:
    """The machine's own rate: the highest that the bare products reached."""
    rates = []
    for who, key in ((blas(dev), "products"), ("PyTorch", "torch_products")):
        known = [r[f"{key}_gigaflops"] for r in results.values() if r[f"{key}_gigaflops"]]
        if known:
            rates.append(f"{max(known):.0f} by {who}")
    workers = f"{dev.threads} thread{'s' if dev.threads > 1 else ''}"
    return f"this machine, GFLOP/s of bare products, at best: {', '.join(rates)}; {workers}"


def blas(dev) -> str:
    """What computes our products."""
    if dev.kind == "cuda":
        return "cuBLAS"
    built_with = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"NumPy's {built_with['name']} {built_with['version']}"
