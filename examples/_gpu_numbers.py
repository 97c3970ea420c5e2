"""Parts of gpu_check.py: numbers of the GPU against those of NumPy.

A part is a function (make, quick) that yields rows; make(dtype, tf32=False) makes its devices.
Arguments of kernels and layouts of products are those of the tests."""

import sys
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from _gpu_rows import Row, checked, gap

from tinygrok.audit.case import Case, Tensors
from tinygrok.audit.cases import BUILDERS
from tinygrok.engine.gemm import matmul
from tinygrok.engine.kernels import KERNELS

TESTS = Path(__file__).parent.parent / "tests"
if str(TESTS) not in sys.path:
    sys.path.append(str(TESTS))

import fakecupy  # noqa: E402
import test_gemm as layouts  # noqa: E402
import test_kernels as arguments  # noqa: E402

# Largest errors, over the largest entry. In float64 they prove the formula; in float32 tanh and erf
# of CUDA and of NumPy round apart, and 1 - tanh^2 cancels.
DOUBLE = 1e-12
KERNEL_SINGLE = 1e-4
PRODUCT = {"float64": 1e-13, "float32": 5e-6, "tf32": 5e-3}
SEEN = 1e-5  # a product in TF32 that is closer than this was not made in TF32
SIZES = (3, 5, 4)  # rows, inner, columns
LARGE = (128, 256, 192)  # that tensor cores take


def audit(make, quick: bool) -> Iterator[Row]:
    """Every case of the audit in float64 and float32, against NumPy in float64."""
    names = list(BUILDERS)
    if quick:  # one of each kind
        names = list({name.split()[0]: name for name in reversed(names)}.values())
    devices = (make("float64"), make("float32"))
    for name in names:
        yield checked(name, of_case, BUILDERS[name](name), devices)


def of_case(case: Case, devices) -> Row:
    y = np.array(case.forward(case.inputs))
    dy = np.random.default_rng(0).standard_normal(y.shape)
    expected = {"y": y} | case.backward(case.inputs, dy)
    double, single = [case_error(case, dev, dy, expected) for dev in devices]
    passed = double <= DOUBLE and single <= case.float32
    limits = {"limit64": DOUBLE, "limit32": case.float32}
    return {"float64": double, "float32": single, **limits, "passed": passed}


def case_error(case: Case, dev, dy: np.ndarray, expected: Tensors) -> float:
    """Of the output and of every gradient, in arrays whose old contents must not matter."""
    gradients = {}
    for name, x in case.inputs.items():
        gradients[name] = dev.empty(x.shape)
        gradients[name].fill(np.nan)
    y, gradients = case(case.inputs, dy, dev, lambda x: x.copy(), gradients)
    found = {"y": y} | gradients
    # A gradient may be 0 but for rounding, as that of a bias before a norm.
    floor = 1e-2 * max(float(np.abs(x).max()) for x in expected.values())
    return max(gap(dev.to_host(found[name]), x, floor) for name, x in expected.items())


def kernels(make, quick: bool) -> Iterator[Row]:
    """Every kernel of the registry against its NumPy body."""
    devices = (make("float64"), make("float32"))
    for name in KERNELS:
        yield checked(name, of_kernel, name, devices)


def of_kernel(name: str, devices) -> Row:
    cases = [makers for kernel, makers in arguments.CASES if kernel == name]
    if not cases:
        raise LookupError("tests/test_kernels.py has no arguments for it")
    double, single = [max(kernel_error(name, m, dev) for m in cases) for dev in devices]
    passed = double <= DOUBLE and single <= KERNEL_SINGLE
    limits = {"limit64": DOUBLE, "limit32": KERNEL_SINGLE}
    return {"float64": double, "float32": single, **limits, "passed": passed}


def kernel_error(name: str, makers: list, dev) -> float:
    """Of all outputs."""
    kernel = KERNELS[name]
    expected = arguments.arguments(name, makers, dev.dtype.name)
    found = []
    for x in arguments.arguments(name, makers, dev.dtype.name):
        found.append(dev.to_device(x) if isinstance(x, np.ndarray) else x)
    kernel.numpy(*expected)
    kernel(dev, *found)
    outputs = len(fakecupy.parameters(kernel.outputs))
    pairs = zip(found[-outputs:], expected[-outputs:], strict=True)
    return max(gap(dev.to_host(ours), theirs) for ours, theirs in pairs)


def products(make, quick: bool) -> Iterator[Row]:
    """Every layout that cuBLAS is asked for, in float64, float32 and TF32, against NumPy."""
    modes = {"float64": make("float64"), "float32": make("float32")}
    modes["tf32"] = make("float32", tf32=True)
    plain = layouts.contiguous
    for lead in layouts.LEADS:
        yield checked(f"leading axes: {lead}", of_products, modes, [lead], [(plain, plain, None)])
    leads = ["none", "members"] if quick else list(layouts.LEADS)[:6]
    for layout in layouts.LAYOUTS:
        views = [(layout, plain, None), (plain, layout, None), (layout, layout, None)]
        yield checked(f"operands {layout.__name__}", of_products, modes, leads, views)
    for layout in (layouts.wide, layouts.heads):
        into = [(plain, plain, layout)]
        yield checked(f"results {layout.__name__}", of_products, modes, leads, into)
    few = ["none", "members", "shared b"]
    large = [(plain, plain, None), (layouts.transposed, layouts.heads, layouts.wide)]
    yield checked("large", of_products, modes, few, large, LARGE)
    yield checked("TF32 is on where it is asked for, and off elsewhere", rounds, modes)


def of_products(modes, leads, views, sizes=SIZES) -> Row:
    errors = {}
    for mode, dev in modes.items():
        ways = product(leads, views, layouts.FLAGS)
        errors[mode] = max(product_error(dev, *way, sizes) for way in ways)
    return {**errors, "passed": all(e <= PRODUCT[mode] for mode, e in errors.items())}


def product_error(dev, lead: str, views, flags, sizes) -> float:
    """One product, with a layout of both operands and of the result (None: a new array)."""
    ta, tb, accumulate = flags
    m, k, n = sizes
    rng = np.random.default_rng(0)
    lead_a, lead_b = layouts.LEADS[lead]
    a = rng.standard_normal((*lead_a, m, k))
    b = rng.standard_normal((*lead_b, k, n))
    expected = np.matmul(a, b)
    of_a, of_b, of_out = views
    out = None
    if accumulate or of_out:
        start = rng.standard_normal(expected.shape)
        out = layouts.place(dev, start, of_out or layouts.contiguous)
        expected = expected + start * accumulate
    placed = partial(layouts.place, dev)
    left = placed(np.ascontiguousarray(a.swapaxes(-1, -2)) if ta else a, of_a)
    right = placed(np.ascontiguousarray(b.swapaxes(-1, -2)) if tb else b, of_b)
    found = matmul(dev, left, right, out, ta=ta, tb=tb, accumulate=accumulate)
    return gap(dev.to_host(found), expected)


def rounds(modes) -> Row:
    """Tensor cores have TF32 from compute capability 8.0 on."""
    plain = (layouts.contiguous, layouts.contiguous, None)
    flags = (False, False, False)
    of = {m: product_error(dev, "none", plain, flags, LARGE) for m, dev in modes.items()}
    capability = int(modes["tf32"].xp.cuda.Device().compute_capability)
    on = of["tf32"] > SEEN or capability < 80
    return {**of, "passed": on and of["float32"] < SEEN}
