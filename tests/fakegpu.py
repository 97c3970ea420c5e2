"""What gpu_check.py asks of CuPy beyond arrays and kernels, on the strict fake: events, hooks of
the memory pool, versions, products that round to TF32, and cupyx.profiler.

Events take the time of the host. The fake GPU is never busy: an event counts as reached once
anything has waited for the device, so that a step which waits is seen. Its pool grows when more
bytes are alive than ever since it was emptied. `fakegpu.install()` makes it the module `cupy` of
this process."""

import statistics
import sys
import time
from types import ModuleType, SimpleNamespace

import fakecupy
import numpy as np

right_gemm = fakecupy.cuda.cublas.gemmStridedBatchedEx


class Event:
    def record(self, stream=None):
        self.time = time.perf_counter()
        self.syncs = fakecupy.counts.syncs

    def synchronize(self):
        fakecupy._sync("Event.synchronize")

    @property
    def done(self):
        return fakecupy.counts.syncs > self.syncs


def get_elapsed_time(start_event, end_event):
    """In ms"""
    return 1e3 * (end_event.time - start_event.time)


class MemoryHook:
    """Calls the hooks at the end of the block, once for every array that was made inside."""

    name = "MemoryHook"

    def alloc_preprocess(self, **kwargs):
        pass

    def malloc_preprocess(self, **kwargs):
        pass

    def __enter__(self):
        fakecupy.pool.grow()
        self.before = fakecupy.counts.allocs
        return self

    def __exit__(self, *_):
        for _ in range(fakecupy.counts.allocs - self.before):
            self.malloc_preprocess(device_id=0, size=1, mem_size=512)
        if fakecupy.pool.grow():
            self.alloc_preprocess(device_id=0, mem_size=512)


def tf32_gemm(*args):
    """cuBLAS with products in TF32: the result has 10 bits of mantissa."""
    right_gemm(*args)
    m, n = args[3:5]
    C, Ctype, ldc, strideC, batch, compute, _ = args[-7:]
    if compute == 77:
        assert Ctype == 0
        c = fakecupy._memory(C, np.dtype("float32"), batch, m, n, ldc, strideC)
        bits = np.ascontiguousarray(c).view(np.uint32) & np.uint32(0xFFFFE000)
        c[...] = bits.view(np.float32)


def benchmark(func, args=(), kwargs={}, n_repeat=10000, *, name=None, n_warmup=10, max_duration=0):  # noqa: B006
    for _ in range(n_warmup):
        func(*args, **kwargs)
    times = []
    for _ in range(min(n_repeat, 2)):
        began = time.perf_counter()
        func(*args, **kwargs)
        times.append(time.perf_counter() - began)
    gpu = [statistics.median(times)] * len(times)
    return SimpleNamespace(cpu_times=np.array(times), gpu_times=np.array([gpu]))


def install(set_attribute=setattr, set_module=sys.modules.__setitem__):
    """Make the fake the modules cupy and cupyx of this process.

    Tests hand over what monkeypatch has, which takes everything back."""
    cuda = fakecupy.cuda
    runtime = {"driverGetVersion": lambda: 13000, "runtimeGetVersion": lambda: 13000}
    runtime["memGetInfo"] = lambda: (10**11, 2 * 10**11)
    events = {"Event": Event, "get_elapsed_time": get_elapsed_time, "MemoryHook": MemoryHook}
    cublas = {"gemmStridedBatchedEx": tf32_gemm, "getVersion": lambda handle: 130000}
    nvrtc = {"nvrtc": SimpleNamespace(getVersion=lambda: (13, 0))}
    places = [(cuda, events | nvrtc), (cuda.runtime, runtime), (cuda.cublas, cublas)]
    for place, names in (*places, (cuda.Device, {"compute_capability": "90"})):
        for name, value in names.items():
            set_attribute(place, name, value)
    cupyx = ModuleType("cupyx")
    cupyx.profiler = ModuleType("cupyx.profiler")
    cupyx.profiler.benchmark = benchmark
    for name, module in {"cupy": fakecupy, "cupyx": cupyx}.items():
        set_module(name, module)
    set_module("cupyx.profiler", cupyx.profiler)
