"""Parts of gpu_check.py: step times beside the bare products and PyTorch, and where they go."""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import benchmark
import numpy as np
from _benchmark_steps import HAS_TORCH, WORKLOADS
from _gpu_rows import Row, checked, several
from _gpu_runs import ARGS, READS, WARM, held, hold, workload

import tinygrok
from tinygrok.audit.case import replaced
from tinygrok.engine.errors import one_line

REPEATS = 5  # turns of every candidate
COMPILED = ("in-context", "lcg", "vgg", "mlp")  # of what PyTorch compiles, while time allows
COMPARED = Namespace(**vars(ARGS) | {"only": None})  # twins are held against our gradients
FEW = ("mlp", "in-context")  # of the workloads, with --quick
LARGEST = 8  # operations of a step that are listed
PACKAGE = Path(tinygrok.__file__).parent
# What launches kernels: functions of ops/, and these of other files.
ELSEWHERE = {"engine/gemm.py": "matmul", "engine/kernels.py": "__call__", "engine/optim.py": "step"}


def with_torch() -> bool:
    """Whether there is a PyTorch that computes on this GPU."""
    if not HAS_TORCH:
        return False
    import torch

    return torch.cuda.is_available()


def times(make, quick: bool) -> Iterator[Row]:
    """Step of every workload in float32 and TF32: ours, the bare products, PyTorch."""
    for name in FEW if quick else WORKLOADS:
        for tf32 in (False, True):
            label = f"{name}, {'TF32' if tf32 else 'float32'}"
            dev = make("float32", tf32=tf32)
            yield checked(label, of_times, dev, name, 3 if quick else REPEATS)


def of_times(dev, name: str, repeats: int) -> Row:
    """Milliseconds of a step. PyTorch: the fastest twin that is not compiled, and as a graph."""
    twins = with_torch()
    args = ARGS if dev.tf32 else COMPARED  # in TF32 the losses agree to fewer digits
    makers = twin_makers(dev, args, name, twins)
    candidates = {"tinygrok": makers.pop("tinygrok")()}
    bare, work = benchmark.products(dev, candidates["tinygrok"])
    if work:
        candidates["products"] = bare
    problems = []
    for twin, maker in makers.items():
        if "compiled" not in twin:
            add(candidates, problems, twin, maker)
    eager = [twin for twin in candidates if twin.startswith("torch")]
    notes = []  # what PyTorch cannot capture is no fault of ours
    if eager and name not in READS:
        add(candidates, notes, "graph", partial(graph, makers[eager[0]]))
    seconds = benchmark.interleaved(dev, candidates, repeats, 5)
    ms = {candidate: 1e3 * s for candidate, s in seconds.items()}
    best = min((ms[twin] for twin in eager), default=None)
    row = {"tinygrok": ms["tinygrok"], "products": ms.get("products"), "torch": best}
    row["torch graph"] = ms.get("graph")
    row |= {"to products": ratio(ms["tinygrok"], row["products"])}
    row |= {"to torch": ratio(ms["tinygrok"], best)}
    row |= {"to graph": ratio(ms["tinygrok"], row["torch graph"])}
    row["GFLOP"] = 2e-9 * work
    return {**row, "passed": not problems, "error": "; ".join(problems + notes)}


def twin_makers(dev, args, name: str, twins: bool) -> dict[str, Callable]:
    """Ours, and the twins: their convolutions too are as precise as asked for."""
    if twins:
        import torch

        torch.backends.cudnn.allow_tf32 = dev.tf32
    return dict(WORKLOADS[name](args, dev, twins))


def add(candidates: dict, problems: list, name: str, maker: Callable) -> None:
    """A candidate; one that cannot be made is a problem, and the others are timed."""
    try:
        candidates[name] = maker()
    except Exception as error:
        problems.append(one_line(f"{name}: {type(error).__name__}: {error}"))


def ratio(ours: float, theirs: float | None) -> float | None:
    return ours / theirs if theirs else None


def graph(maker: Callable) -> Callable:
    """The step of an eager twin, captured once and replayed: no work of the host in between."""
    import torch

    capturable = partial(torch.optim.AdamW, capturable=True)
    with replaced({(torch.optim, "AdamW"): capturable}):
        step = maker()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        step()
    return captured.replay


def compiled(make, quick: bool) -> Iterator[Row]:
    """The same with torch.compile, whose compiler takes most of the time; as far as time goes."""
    if not with_torch():
        yield {"check": "PyTorch with CUDA is not installed", "passed": None}
        return
    for name in COMPILED[:1] if quick else COMPILED:
        yield checked(f"{name}, float32", of_compiled, make("float32"), name)


def of_compiled(dev, name: str) -> Row:
    makers = twin_makers(dev, ARGS, name, True)
    twin = next(twin for twin in makers if "compiled" in twin)
    candidates = {"tinygrok": makers["tinygrok"](), twin: makers[twin]()}
    seconds = benchmark.interleaved(dev, candidates, REPEATS, 5)
    ms = {candidate: 1e3 * s for candidate, s in seconds.items()}
    row = {"tinygrok": ms["tinygrok"], "torch compiled": ms[twin]}
    return {**row, "to torch": ratio(*row.values()), "passed": True}


# -- where the time goes ---------------------------------------------------------------------------


def profile(make, quick: bool) -> Iterator[Row]:
    """A step's time: what the host takes to launch it, the kernels, and the gaps between them."""
    dev = make("float32")
    names = FEW if quick else WORKLOADS
    for name in names:
        yield checked(name, of_profile, dev, name)


def of_profile(dev, name: str) -> Row:
    """cupyx.profiler times host and device; a held GPU (_gpu_runs.hold) the kernels alone.

    Where the host takes longer than the kernels, fewer launches help; else fewer bytes and flops.
    """
    import cupyx.profiler  # pyright: ignore[reportMissingImports]

    step = workload(dev, name)
    found = cupyx.profiler.benchmark(step, n_repeat=20, n_warmup=WARM, name=name, max_duration=5)
    host = 1e3 * float(np.median(found.cpu_times))
    device = 1e3 * float(np.median(found.gpu_times))
    row = {"ms of the host": host, "ms of the GPU": device}
    if name in READS:
        return {**row, "passed": None}
    kernels = 1e3 * held(dev, step)[2]
    row |= {"kernels": kernels, "gaps": max(device - kernels, 0.0)}
    slower = "launches" if host > kernels else "kernels"
    return {**row, "bound by": slower, "passed": None}


def launches(step: Callable) -> int | None:
    """Kernels and copies of a step, by PyTorch's profiler, which sees those of others too."""
    if not with_torch():
        return None
    import torch

    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as seen:
        step()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return sum(event.device_type == on_device for event in seen.events())


def operations(make, quick: bool) -> Iterator[Row]:
    """The largest parts of a step's time on the GPU, by the operation that launched them."""
    dev = make("float32")
    for name in FEW if quick else WORKLOADS:
        if name not in READS:
            yield from several(name, of_operations, dev, name)


def of_operations(dev, name: str) -> Iterator[Row]:
    step = workload(dev, name)
    for _ in range(WARM):
        step()
    spent, calls = spans(dev, step)
    total = sum(spent.values())
    everything = {"launches": launches(step), "calls": calls.total(), "ms": total, "share": 1.0}
    yield {"check": f"{name}: all", **everything, "passed": None}
    for operation, ms in spent.most_common(LARGEST):
        row = {"check": f"{name}: {operation}", "calls": calls[operation], "ms": ms}
        yield {**row, "share": ms / total if total else 0.0, "passed": None}


def spans(dev, step: Callable) -> tuple[Counter, Counter]:
    """({operation: ms of the GPU}, {operation: calls}) of one step that waits behind a held GPU.

    An event at every call and return of the library's operations cuts the queue into pieces; each
    belongs to the innermost operation. An event takes about a microsecond itself."""
    marks = []
    names = ["the rest"]
    calls = Counter()

    def mark() -> None:
        event = dev.xp.cuda.Event()
        event.record()
        marks.append((event, names[-1]))

    def seen(frame, event: str, _) -> None:
        if event not in ("call", "return"):
            return
        operation = operation_of(frame)
        if operation is None:
            return
        if event == "call":
            names.append(operation)
            calls[operation] += 1
        elif len(names) > 1:
            names.pop()
        mark()

    dev.xp.cuda.runtime.deviceSynchronize()
    hold(dev, 1.0)
    mark()
    sys.setprofile(seen)
    try:
        step()
    finally:
        sys.setprofile(None)
    mark()
    marks[-1][0].synchronize()
    spent = Counter()
    for (begin, operation), (end, _) in zip(marks, marks[1:], strict=False):
        spent[operation] += dev.xp.cuda.get_elapsed_time(begin, end)
    return spent, calls


def operation_of(frame) -> str | None:
    """The name of a call that launches kernels; None for others."""
    code = frame.f_code
    if not code.co_filename.startswith(str(PACKAGE)):
        return None
    where = Path(code.co_filename).relative_to(PACKAGE).as_posix()
    if where.startswith("ops/"):
        return None if code.co_name.startswith(("_", "<")) else code.co_name
    if ELSEWHERE.get(where) != code.co_name:
        return None
    kernel = frame.f_locals.get("self")
    names = {"matmul": "products", "step": "optimiser"}
    return names.get(code.co_name) or f"kernel {kernel.name}"
