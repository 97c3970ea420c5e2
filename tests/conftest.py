"""Devices that every test can run on: NumPy, the strict fake of CuPy, and CuPy on a GPU."""

import os
import signal
import sys
from pathlib import Path

# Read when NumPy is imported: worker threads must not multiply.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Of a suite that was started with & or nohup; else the examples that tests interrupt ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "examples")]

import fakecupy  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from tinygrok.engine import compiled  # noqa: E402
from tinygrok.engine.device import Device, find_cupy, get_device  # noqa: E402

DEVICES = {
    "numpy-float64": lambda: Device("cpu", np, "float64", 1, "test"),
    "numpy-float32": lambda: Device("cpu", np, "float32", 2, "test"),
    "fake-float32": lambda: fakecupy.fake_device("float32"),
    "fake-float64": lambda: fakecupy.fake_device("float64"),
}
if compiled.COMPILER is not None:
    DEVICES["compiled-float32"] = lambda: Device("cpu", np, "float32", 2, kernels="compiled")
if find_cupy()[0] is not None:
    DEVICES |= {f"cupy-{t}": lambda t=t: get_device("cuda", t) for t in ("float32", "float64")}


@pytest.fixture(autouse=True)
def _fresh_fake():
    fakecupy.reset()


@pytest.fixture(params=list(DEVICES))
def dev(request) -> Device:
    """Every kind of device; results are compared after dev.to_host."""
    return DEVICES[request.param]()


@pytest.fixture
def host_dev() -> Device:
    """NumPy in float64, where a test needs one device only."""
    return DEVICES["numpy-float64"]()
