"""The parts of gpu_check.py, and the process of one: python _gpu_parts.py PART DEVICE ROWS.

A row is one line of JSON in the file ROWS as soon as it is known, so that a part which hangs, or
takes the process with it, has reported what was done before."""

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import importlib  # isort: skip
import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from _gpu_rows import Row, checked

from tinygrok.engine.device import get_device


class Part(NamedTuple):
    """What it shows, its limit in seconds, and the module that has the function of its name."""

    title: str
    seconds: int
    module: str


PARTS = {
    "versions": Part("device, driver and versions", 15, "_gpu_parts"),
    "kernels": Part("every fused kernel against its NumPy body", 80, "_gpu_numbers"),
    "products": Part("every layout of cuBLAS, float64, float32, TF32", 30, "_gpu_numbers"),
    "audit": Part("every operation and network against NumPy", 120, "_gpu_numbers"),
    "members": Part("an ensemble against networks alone, and NumPy", 25, "_gpu_runs"),
    "resume": Part("a resumed run against one left alone, bit by bit", 30, "_gpu_runs"),
    "steps": Part("no memory taken, nothing read, no waiting in a step", 25, "_gpu_runs"),
    "times": Part("ms a step: ours, bare products, PyTorch and its graphs", 100, "_gpu_times"),
    "profile": Part("host, kernels and gaps of a step, in ms", 30, "_gpu_times"),
    "operations": Part("the largest operations of a step, in ms of the GPU", 20, "_gpu_times"),
    "compiled": Part("ms a step beside torch.compile", 55, "_gpu_times"),
}
PARTIAL = {"compiled"}  # its time is another's compiler: what is done in time is enough


def versions(make, quick: bool) -> Iterator[Row]:
    """What the numbers of the other parts are about."""
    dev = make("float32")
    cuda = dev.xp.cuda
    device = cuda.Device()
    gigabytes = [round(count / 1e9, 1) for count in cuda.runtime.memGetInfo()]
    facts: dict[str, Callable] = {
        "device": lambda: dev.reason,
        "compute capability": lambda: device.compute_capability,
        "memory, free and all, GB": lambda: gigabytes,
        "driver's CUDA": cuda.runtime.driverGetVersion,
        "CUDA runtime": cuda.runtime.runtimeGetVersion,
        "cuBLAS": lambda: cuda.cublas.getVersion(cuda.device.get_cublas_handle()),
        "NVRTC": lambda: list(cuda.nvrtc.getVersion()),
        "CuPy": lambda: dev.xp.__version__,
        "NumPy": lambda: np.__version__,
        "Python": platform.python_version,
        "PyTorch": torch_version,
    }
    for name, fact in facts.items():
        yield checked(name, lambda fact=fact: {"value": fact(), "passed": None})


def torch_version() -> str:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def rows(name: str, make: Callable, quick: bool) -> Iterator[Row]:
    """Of a part. make(dtype, tf32=False) makes its devices."""
    module = importlib.import_module(PARTS[name].module)
    return getattr(module, name)(make, quick)


def main(name: str, spec: str, path: str, *flags: str) -> None:
    def make(dtype, tf32=False):
        return get_device(spec, dtype, threads=1, tf32=tf32)

    with open(path, "w") as file:
        for row in rows(name, make, "--quick" in flags):
            print(json.dumps(row, default=str), file=file, flush=True)


if __name__ == "__main__":
    cli.main(partial(main, *sys.argv[1:]))
