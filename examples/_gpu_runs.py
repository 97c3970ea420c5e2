"""Parts of gpu_check.py: training on the GPU. Members against networks alone, resumed runs, and
steps that neither allocate nor wait."""

import gc
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from _benchmark_steps import WORKLOADS
from _gpu_rows import Row, checked, gap

from tinygrok.audit.case import cpu_device
from tinygrok.training.checkpoint import load_arrays, load_training, save_training
from tinygrok.training.ensembles import build

POINTS = [
    {"seed": 0, "alpha": 0.3, "weight_decay": 0.0, "xi": 0.0},
    {"seed": 1, "alpha": 0.5, "weight_decay": 5.0, "xi": 0.2},
    {"seed": 2, "alpha": 0.8, "weight_decay": 1.0, "xi": 0.4},
]
KINDS = {
    "plain": {},
    "cross-entropy": {"loss": "cross_entropy"},
    "dropout": {"dropout": 0.3},
    "BatchNorm": {"batchnorm": True},
    "minibatches": {"batch_size": 64},
}
STEPS = 20
TOGETHER = 1e-9  # float64: cuBLAS may sum one member's products in another order
ARGS = Namespace(p=97, width=500, seed=0, only="tinygrok")  # of the benchmark's workloads
READS = {"apjn"}  # its step is an estimate, which is read
RESUMED = ("mlp-batchnorm", "ensemble", "in-context-small", "lcg", "vgg")
WARM = 5  # steps until every buffer and kernel is there
HELD = 0.3  # seconds that the GPU is kept busy: longer than a step takes to launch


def workload(dev, name: str) -> Callable:
    """The training step of one of the benchmark's workloads."""
    return WORKLOADS[name](ARGS, dev, False)["tinygrok"]()


def points(kind: str) -> list[dict]:
    return [point | {"p": 23, "width": 48} | KINDS[kind] for point in POINTS]


def trained(dev, points: list[dict], steps: int) -> dict[str, np.ndarray]:
    """Weights after some steps."""
    run = build(dev, points)
    for _ in range(steps):
        run.step()
    return run.params.to_host()


def members(make, quick: bool) -> Iterator[Row]:
    """Networks of an ensemble against the same ones alone, and against NumPy."""
    devices = (make("float64"), make("float32"))
    for kind in KINDS:
        yield checked(kind, of_members, devices, points(kind), 5 if quick else STEPS)


def of_members(devices, points: list[dict], steps: int) -> Row:
    """Only float64 is judged: AdamW makes a full step of a gradient that is mere rounding."""
    row = {"steps": steps}
    for dev in devices:
        together = trained(dev, points, steps)
        alone = [trained(dev, [point], steps) for point in points]
        single = {name: np.concatenate([w[name] for w in alone]) for name in together}
        kind = dev.dtype.name
        row[f"alone, {kind}"] = largest(together, single)
        row[f"the same bits, {kind}"] = same(together, single)
        row[f"NumPy, {kind}"] = largest(together, trained(cpu_device(kind), points, steps))
    row["passed"] = max(row["alone, float64"], row["NumPy, float64"]) <= TOGETHER
    return row


def largest(found: dict, expected: dict) -> float:
    return max(gap(found[name], x) for name, x in expected.items())


def same(a: dict, b: dict) -> bool:
    """Whether all bits are."""
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def resume(make, quick: bool) -> Iterator[Row]:
    """A run that goes on from its checkpoint against one that was left alone, bit by bit."""
    dev = make("float32")
    for kind in KINDS:
        yield checked(f"ensemble, {kind}", of_resume, lambda kind=kind: build(dev, points(kind)), 6)
    for name in RESUMED[:2] if quick else RESUMED:
        yield checked(name, of_resume, lambda name=name: workload(dev, name).__self__, 3)


def of_resume(fresh: Callable, half: int) -> Row:
    """Also twice from the start: where that differs, resuming is not at fault."""
    whole = [forward(fresh(), 2 * half) for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.npz")
        save_training(path, forward(fresh(), half), {})
        later = fresh()
        load_training(path, later, {})
        states = [state(path, run) for run in (*whole, forward(later, half))]
    first, again, resumed = states
    repeated = same(first, again)
    equal = same(first, resumed)
    return {"steps": 2 * half, "repeated": repeated, "resumed": equal, "passed": equal}


def forward(run, steps: int):
    for _ in range(steps):
        run.step()
    return run


def state(path: Path, run) -> dict:
    """Weights, buffers and optimiser state of a run."""
    save_training(path, run, {})
    return load_arrays(path)[1]


def steps(make, quick: bool) -> Iterator[Row]:
    """Steps of every workload after a few: no memory from the device, nothing that waits for it."""
    dev = make("float32")
    for name in WORKLOADS:
        if name not in READS:
            yield checked(name, of_steps, dev, name)


def of_steps(dev, name: str) -> Row:
    empty_pool(dev)
    step = workload(dev, name)
    for _ in range(WARM):
        step()
    with allocations(dev) as taken, copies(dev) as read:
        for _ in range(WARM):
            step()
    held(dev, step)  # what launching ahead needs, such as pinned memory
    waited, launched, _ = held(dev, step)
    return {
        "cudaMalloc": taken["device"],
        "arrays a step, from the pool": taken["pool"] / WARM,
        "copies to the host": len(read),
        "waited": waited,
        "ms to launch": 1e3 * launched,
        "passed": not (taken["device"] or read or waited),
    }


def empty_pool(dev) -> None:
    """Give free blocks back to the driver: those of an earlier check would hide growth."""
    gc.collect()
    dev.xp.get_default_memory_pool().free_all_blocks()


@contextmanager
def allocations(dev) -> Iterator[dict]:
    """{"device": memory asked of the driver, "pool": arrays} inside the block."""
    counts = {"device": 0, "pool": 0}

    class Hook(dev.xp.cuda.MemoryHook):
        name = "tinygrok"

        def alloc_preprocess(self, **_):
            counts["device"] += 1

        def malloc_preprocess(self, **_):
            counts["pool"] += 1

    with Hook():
        yield counts


@contextmanager
def copies(dev) -> Iterator[list]:
    """Shapes of the arrays that are copied to the host inside the block: all ways lead over get."""
    kind = dev.xp.ndarray
    get = kind.get
    own = "get" in vars(kind)
    found = []

    def counted(self, *args, **options):
        found.append(self.shape)
        return get(self, *args, **options)

    kind.get = counted
    try:
        yield found
    finally:
        if own:
            kind.get = get
        else:
            del kind.get


# Busy for some nanoseconds of the GPU's clock; on a CPU, which is not held, nothing.
HOLD = """
#ifdef __CUDA_ARCH__
unsigned long long first, now;
asm volatile("mov.u64 %0, %globaltimer;" : "=l"(first));
do {
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
} while (now - first < (unsigned long long)nanoseconds);
#endif
done = T(0);
"""


def hold(dev, seconds: float = HELD):
    """Keep the GPU busy; the event of the end. What is launched now waits in the queue."""
    kernel = dev.xp.ElementwiseKernel("int64 nanoseconds", "T done", HOLD, "hold")
    kernel(int(seconds * 1e9), dev.empty((1,)))
    end = dev.xp.cuda.Event()
    end.record()
    return end


def held(dev, step: Callable) -> tuple[bool, float, float]:
    """One step that is launched while the GPU is held: (whether it waited for the GPU, seconds to
    launch it, seconds that the GPU then takes, without gaps between the kernels)."""
    dev.xp.cuda.runtime.deviceSynchronize()
    begin = hold(dev)
    first = time.perf_counter()
    step()
    launched = time.perf_counter() - first
    waited = begin.done
    end = dev.xp.cuda.Event()
    end.record()
    end.synchronize()
    return waited, launched, dev.xp.cuda.get_elapsed_time(begin, end) / 1e3
