"""Where arrays live and how the work on them is spread: NumPy on the CPU, CuPy on a GPU.

A Device is passed to every operation; there is no global backend, so two devices can serve one
process. Host and device exchange data in two places only, `to_device` and `to_host`.
"""

import itertools
import os
import re
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np

from .errors import InputError, require_known
from .workspace import Workspace

Array = Any  # numpy.ndarray or cupy.ndarray; CuPy ships no type stubs

BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class DeviceError(InputError):
    """The device that was asked for cannot be had; the message says why."""


class Device:
    """An array module, the dtype of floating point work on it, and (CPU) its worker threads.

    kind      "cpu" or "cuda"
    xp        numpy or cupy
    dtype     of weights and activations: float32 or float64 (the auditor also uses complex128)
    threads   worker threads of `map`; on a GPU 1
    reason    one line that says why this device was taken
    tf32      whether products of float32 on a GPU may round their operands to TF32
    kernels   "numpy", or "compiled" (engine/compiled.py): what runs them on the CPU. Without a
              compiler it becomes "numpy", and the reason says why

    >>> dev = get_device("cpu", dtype="float64", threads=1)
    >>> dev
    Device(cpu, float64, threads=1)
    >>> dev.to_host(dev.xp.sqrt(dev.to_device([1, 4.0])))
    array([1., 2.])
    >>> dev.map(len, ["one", "seven"])
    [3, 5]
    """

    def __init__(
        self, kind: str, xp: Any, dtype="float32", threads=1, reason="", tf32=False, kernels="numpy"
    ):
        self.kind = kind
        self.xp = xp
        self.dtype = np.dtype(dtype)
        self.threads = threads
        self.reason = reason
        self.tf32 = tf32
        self.products: list | None = None  # a list records shapes and flags of every product
        self._pool: ThreadPoolExecutor | None = None
        self._local = threading.local()
        # glibc's malloc keeps what is freed up to twice the largest block freed so far, of at most
        # 32 MB; what it gives back, the next step asks of the system anew, page by page.
        np.empty(31 << 20, np.uint8)
        self.compiled: dict[str, Any] = {}  # kernels by name; on a GPU engine/kernels.py fills it
        self.kernels = kernels
        if kernels == "compiled":
            from . import compiled  # which imports the kernels, and these this file

            self.compiled, self.kernels, which = compiled.load()
            self.reason += f"; {which}"
        self._blas_limit = blas_limiter() if threads > 1 else nullcontext

    def __repr__(self) -> str:
        return f"Device({self.kind}, {self.dtype.name}, threads={self.threads})"

    def __deepcopy__(self, memo) -> "Device":
        return self  # a copy of a run computes where the run does

    # -- arrays ------------------------------------------------------------------------------------

    def empty(self, shape, dtype=None) -> Array:
        return self.xp.empty(shape, dtype=dtype or self.dtype)

    def zeros(self, shape, dtype=None) -> Array:
        return self.xp.zeros(shape, dtype=dtype or self.dtype)

    def to_device(self, x) -> Array:
        """Host array or sequence -> device array; floats take its dtype, others keep theirs."""
        x = np.asarray(x)
        if x.dtype.kind in "fc":
            x = x.astype(self.dtype, copy=False)
        return self.xp.asarray(x)

    def to_host(self, x: Array) -> Array:
        """Device array -> NumPy array or scalar (this waits for the device)."""
        if isinstance(x, np.ndarray | np.generic):
            return x
        return self.xp.asnumpy(x)

    def fresh(self, name: str, shape, dtype=None) -> Array:
        """A new buffer; the name is ignored. Stands where `workspace.get` would reuse one."""
        return self.empty(shape, dtype)

    def memory_bytes(self) -> int:
        """Memory of the GPU, taken or not."""
        return self.xp.cuda.runtime.memGetInfo()[1]

    @property
    def workspace(self) -> Workspace:
        """The calling thread's named scratch buffers, reused from call to call."""
        if not hasattr(self._local, "workspace"):
            self._local.workspace = Workspace(self.empty)
        return self._local.workspace

    # -- threads -----------------------------------------------------------------------------------

    def map(self, fn: Callable, items: Iterable) -> list:
        """[fn(x) for x in items], spread over the worker threads.

        NumPy and BLAS release the interpreter lock. The caller works too. A map inside a map runs
        serially, so an outer loop over members and an inner one over shards can both be written as
        maps. The order in which items finish never reaches the result."""
        items = list(items)
        workers = min(self.threads, len(items))
        if workers <= 1 or getattr(self._local, "busy", False):
            return [fn(x) for x in items]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="tinygrok")
        results: list = [None] * len(items)
        counter = itertools.count()  # next() on it is atomic: each item is taken once

        def work():
            self._local.busy = True
            try:
                for i in counter:
                    if i >= len(items):
                        break
                    results[i] = fn(items[i])
            finally:
                self._local.busy = False

        with self._blas_limit():
            futures = [self._pool.submit(work) for _ in range(workers - 1)]
            try:
                work()
            finally:
                # After an error in this thread: hand out nothing more before waiting.
                for _ in items:
                    next(counter)
                wait(futures)
        for future in futures:
            future.result()  # raises what went wrong there
        return results


def blas_limiter() -> Callable:
    """A context manager factory that holds BLAS to one thread while the worker threads run.

    OpenBLAS splitting small products over its own threads, inside worker threads, can cost a factor
    of ten. Two ways lead out: OPENBLAS_NUM_THREADS=1 in the environment before NumPy is imported
    (the examples do that), or the package threadpoolctl, which changes the running library.
    """
    if any(os.environ.get(v) == "1" for v in BLAS_VARIABLES):
        return nullcontext
    from threadpoolctl import ThreadpoolController

    controller = ThreadpoolController()
    return partial(controller.limit, limits=1, user_api="blas")


def default_threads() -> tuple[int, str]:
    """Worker threads to use when the user names none, and why."""
    if hasattr(os, "sched_getaffinity"):  # the cores that this process may use
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        blas_limiter()
    except ImportError:
        holds = "neither threadpoolctl nor OPENBLAS_NUM_THREADS=1 holds BLAS to one thread a worker"
        return 1, f"one worker: {holds}"
    return cores, _workers(cores)


def _workers(count: int) -> str:
    return "1 worker thread" if count == 1 else f"{count} worker threads"


def find_cupy() -> tuple[Any, str]:
    """(cupy, why) when a GPU can be used, (None, why not) otherwise.

    Importing CuPy needs neither GPU nor driver."""
    try:
        import cupy  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None, "CuPy is not installed (pip install 'tinygrok[gpu]')"
    if not cupy.cuda.is_available():
        return None, f"CuPy {cupy.__version__} finds no usable GPU"
    return cupy, f"CuPy {cupy.__version__}"


def get_device(
    spec: str = "auto", dtype="float32", threads: int | None = None, tf32=False, kernels="numpy"
) -> Device:
    """Choose a device: "auto" (a GPU when there is one), "cpu", "cuda" or "cuda:1".

    kernels   on the CPU: "numpy", or "compiled" by the system's C++ compiler (engine/compiled.py)

    Raises DeviceError, with one line that says why, for an unknown name, a GPU that is not there,
    or bad settings.

    >>> get_device("cpu", threads=2)
    Device(cpu, float32, threads=2)
    >>> get_device("cpu", dtype="float16")
    Traceback (most recent call last):
    tinygrok.engine.device.DeviceError: unknown dtype 'float16': choose float32 or float64
    """
    name, _, index = spec.partition(":")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", spec):
        raise DeviceError(f"unknown device {spec!r}: choose auto, cpu, cuda or cuda:<number>")
    if dtype not in ("float32", "float64", "complex128"):
        raise DeviceError(f"unknown dtype {dtype!r}: choose float32 or float64")
    if threads is not None and threads < 1:
        raise DeviceError(f"threads must be at least 1, not {threads}")
    require_known(kernels, ("numpy", "compiled"), "kernels", DeviceError)
    why_not = ""
    if name != "cpu":
        cupy, why = find_cupy()
        if cupy is not None:
            return _gpu(cupy, why, spec, int(index or 0), dtype, tf32)
        if name == "cuda":
            raise DeviceError(f"{spec} was asked for, but {why}")
        why_not = f"; no GPU: {why}"
    count, why = default_threads() if threads is None else (threads, _workers(threads))
    reason = f"CPU, NumPy {np.__version__}, {why}{why_not}"
    try:
        return Device("cpu", np, dtype, count, reason, kernels=kernels)
    except ImportError as error:
        needs = "threadpoolctl, or OPENBLAS_NUM_THREADS=1 set before NumPy starts"
        raise DeviceError(f"--threads above 1 needs {needs}") from error


def _gpu(cupy: Any, why: str, spec: str, number: int, dtype: str, tf32: bool) -> Device:
    runtime = cupy.cuda.runtime
    count = runtime.getDeviceCount()
    if number >= count:
        raise DeviceError(f"{spec} was asked for, but there are only {count} GPUs")
    cupy.cuda.Device(number).use()
    model = runtime.getDeviceProperties(number)["name"].decode()
    return Device("cuda", cupy, dtype, 1, f"GPU {number}: {model} ({why})", tf32)
