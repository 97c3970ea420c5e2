"""Kernels of images: patches and their sum, max-pooling and its backward. NumPy's body beside plain
loops, the CUDA body compiled as C++ (blocks of threads in two orders, and for the CPU) beside
NumPy's; odd sizes, NaN, gaps; and the launches of a convolution."""

import platform
import subprocess
import sys
from dataclasses import replace

import fakecupy as xp
import numpy as np
import pytest
from test_row_kernels import BLOCKS, each_block, each_dtype, launches

from tinygrok.engine import compiled, row_kernels
from tinygrok.engine.device import Device, get_device
from tinygrok.engine.kernels import KERNELS
from tinygrok.ops import conv

pytestmark = pytest.mark.skipif(xp.COMPILER is None, reason="no C++ compiler for the CUDA bodies")

LOOPS = compiled.load()[0] if xp.COMPILER else {}
SHAPES = {  # (images, H, W, C), side k of a patch, stride, padding
    "VGG": ((2, 6, 7, 3), 3, 1, 1),
    "VGG, wide": ((1, 4, 4, 33), 3, 1, 1),
    "VGG, a pixel": ((3, 1, 1, 5), 3, 1, 1),
    "ResNet, odd": ((2, 7, 5, 4), 3, 2, 1),
    "ResNet, even": ((2, 8, 6, 17), 3, 2, 1),
    "ViT": ((2, 8, 12, 3), 4, 4, 0),
    "Mixer, cut off": ((2, 9, 10, 1), 4, 4, 0),
    "1x1": ((2, 5, 4, 2), 1, 2, 0),
    "gaps between patches": ((2, 7, 8, 3), 2, 3, 0),
    "large": ((1, 9, 8, 2), 5, 3, 2),
    "padded beyond a patch": ((2, 5, 3, 2), 2, 1, 3),
}
POOLS = {  # (images, H, W, C), side of a window
    "VGG": ((2, 8, 6, 16), 2),
    "odd": ((3, 7, 5, 3), 2),
    "three": ((1, 10, 11, 70), 3),
    "alone": ((2, 3, 4, 5), 1),
    "256 cells": ((2, 16, 17, 3), 16),
    "324 cells": ((1, 18, 18, 2), 18),
}
each_shape = pytest.mark.parametrize("shape", SHAPES)
each_pool = pytest.mark.parametrize("pool", POOLS)


def geometry(shape):
    """(size of x, what the kernels are told, size of rows)"""
    (B, H, W, C), k, s, p = SHAPES[shape]
    Ho = (H + 2 * p - k) // s + 1
    Wo = (W + 2 * p - k) // s + 1
    return (B, H, W, C), (H, W, Ho, Wo, k, s, p), (B * Ho * Wo, k * k * C)


def draw(dtype, *size):
    """Numbers of few bits: sums of them are exact, and some are equal."""
    return (np.random.default_rng(sum(size)).integers(-40, 40, size) / 8).astype(dtype)


def given(name, which, dtype):
    """(inputs, shapes and types of the outputs) of a kernel."""
    if name.startswith("patches"):
        x, numbers, rows = geometry(which)
        before, after = (x, rows) if name == "patches" else (rows, x)
        return (draw(dtype, *before), *numbers), [(after, dtype)]
    (B, H, W, C), k = POOLS[which]
    small = (B, H // k, W // k, C)
    if name == "maxpool":
        return (draw(dtype, B, H, W, C), H, W, k), [(small, "int32"), (small, dtype)]
    cells = np.random.default_rng(0).integers(0, k * k, small).astype("int32")
    return (draw(dtype, *small), cells, H, W, k), [((B, H, W, C), dtype)]


def run(way, name, inputs, outputs, block="alone"):
    """The outputs of a kernel by "numpy", as "compiled" for the CPU, or on the "fake" GPU."""
    kernel = getattr(row_kernels, name)
    made = [np.full(shape, -7 if dtype == "int32" else np.nan, dtype) for shape, dtype in outputs]
    args = [*inputs, *made]
    if way == "fake":
        args = [xp.asarray(a) if isinstance(a, np.ndarray) else a for a in args]
        with xp.block_of(*BLOCKS[block]):
            kernel(xp.fake_device(made[-1].dtype.name), *args)
        return [a.get() for a in args[-len(made) :]]
    with np.errstate(all="ignore"):
        assert (kernel.numpy if way == "numpy" else LOOPS[name])(*args) is not False
    return made


def plain(name, inputs):
    """The same by loops over pixels and windows."""
    if name == "patches":
        x, H, W, Ho, Wo, k, s, p = inputs
        rows = np.zeros((len(x), Ho, Wo, k, k, x.shape[-1]), x.dtype)
    elif name == "patches_backward":
        flat, H, W, Ho, Wo, k, s, p = inputs
        rows = flat.reshape(-1, Ho, Wo, k, k, flat.shape[-1] // k**2)
        x = np.zeros((len(rows), H, W, rows.shape[-1]), flat.dtype)
    for at in np.ndindex(rows.shape[1:5]) if name.startswith("patches") else ():
        i, j, u, v = at
        h, w = s * i + u - p, s * j + v - p
        if 0 <= h < H and 0 <= w < W and name == "patches":
            rows[:, i, j, u, v] = x[:, h, w]
        elif 0 <= h < H and 0 <= w < W:
            x[:, h, w] += rows[:, i, j, u, v]
    if name.startswith("patches"):
        return [rows.reshape(-1, rows[0, 0, 0].size) if name == "patches" else x]
    k = inputs[-1]
    if name == "maxpool":
        x = inputs[0]
        B, H, W, C = x.shape
        windows = np.zeros((B, H // k, W // k, k * k, C), x.dtype)
        for i, j in np.ndindex(windows.shape[1:3]):
            windows[:, i, j] = x[:, k * i : k * i + k, k * j : k * j + k].reshape(B, k * k, C)
        return [windows.argmax(axis=3), windows.max(axis=3)]
    dy, cells, H, W, _ = inputs
    dx = np.zeros((len(dy), H, W, dy.shape[-1]), dy.dtype)
    for b, i, j, c in np.ndindex(dy.shape):
        u, v = divmod(cells[b, i, j, c], k)
        dx[b, k * i + u, k * j + v, c] = dy[b, i, j, c]
    return [dx]


def equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def cases():
    for name in ("patches", "patches_backward"):
        yield from ((name, shape) for shape in SHAPES)
    for name in ("maxpool", "maxpool_backward"):
        yield from ((name, pool) for pool in POOLS)


each_case = pytest.mark.parametrize(("name", "which"), [*cases()])


def test_every_kernel_of_images_is_here():
    made = {x.name for x in KERNELS.values() if x.launch is row_kernels.block_in_arrays}
    assert {name for name, _ in cases()} == made - {"gather_sum", "segment_sum"}


@each_dtype
@each_case
def test_numpy_and_compiled_as_plain_loops(name, which, dtype):
    inputs, outputs = given(name, which, dtype)
    expected = plain(name, inputs)
    equal(run("numpy", name, inputs, outputs), expected)
    equal(run("compiled", name, inputs, outputs), expected)


@each_block
@each_case
def test_cuda_body_by_blocks_of_threads(name, which, block):
    inputs, outputs = given(name, which, "float32")
    equal(run("fake", name, inputs, outputs, block), plain(name, inputs))


@each_dtype
@each_shape
def test_sums_of_any_numbers_within_a_few_ulp(shape, dtype):
    (_, *numbers), outputs = given("patches_backward", shape, dtype)
    size = geometry(shape)[2]
    rows = np.random.default_rng(1).normal(size=size).astype(dtype)
    args = ("patches_backward", (rows, *numbers), outputs)
    (expected,) = run("numpy", *args)
    for way in ("compiled", "fake"):
        (found,) = run(way, *args)
        np.testing.assert_allclose(found, expected, rtol=0, atol=40 * np.finfo(dtype).eps)


@each_dtype
@pytest.mark.parametrize("way", ["compiled", "fake"])
def test_nan_and_infinity_as_in_numpy(way, dtype):
    for name, which in cases():
        (x, *rest), outputs = given(name, which, dtype)
        x.flat[::7], x.flat[3::11], x.flat[4::11] = np.nan, np.inf, -np.inf
        args = (name, (x, *rest), outputs)
        equal(run(way, *args), run("numpy", *args))


def test_arrays_with_gaps():
    """Compiled loops read them from a copy, and leave them to NumPy where they are to be written; a
    GPU reads and writes them."""
    dev = get_device("cpu", threads=1, kernels="compiled")
    x, numbers, size = geometry("VGG")
    wide = draw("float32", *x[:-1], 2 * x[-1])
    rows = np.zeros(size, "float32")
    assert not LOOPS["patches_backward"](rows, *numbers, wide[..., ::2])
    assert LOOPS["patches"](wide[..., ::2], *numbers, rows)
    equal([rows], plain("patches", (wide[..., ::2], *numbers)))
    rows.fill(0)
    row_kernels.patches(dev, wide[..., ::2], *numbers, rows)
    equal([rows], plain("patches", (wide[..., ::2], *numbers)))
    on_gpu = xp.asarray(wide)
    written = xp.zeros(size, "float32")
    row_kernels.patches(xp.fake_device("float32"), on_gpu[..., ::2], *numbers, written)
    equal([written.get()], [rows])
    row_kernels.patches_backward(dev, rows, *numbers, wide[..., ::2])
    equal([wide[..., ::2]], plain("patches_backward", (rows, *numbers)))


@each_dtype
def test_a_convolution_on_every_device(dtype):
    """In parts of a few images, with images that have gaps."""
    rng = np.random.default_rng(0)
    host = [rng.normal(size=size) for size in ((5, 8, 7, 6), (3, 3, 3, 4), (4,), (5, 8, 7, 4))]
    found = {}
    for dev in (Device("cpu", np, dtype), get_device("cpu", dtype, 1, kernels="compiled")):
        x, w, b, dy = (dev.to_device(a) for a in host)
        dw, db = np.empty_like(w), np.empty_like(b)
        y, cache = conv.conv_forward(dev, x[..., ::2], w, b, 1, 1)
        dx = conv.conv_backward(dev, dy, cache, dw, db)
        found[dev.kernels] = y, dx, dw, db
    for ours, theirs in zip(*found.values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=300 * np.finfo(dtype).eps)


def test_launches():
    """Patches in, product, bias; patches in, two products, the bias's sum, patches out. With a view
    for every pixel of a patch: 3 x 3 and more each."""
    dev = xp.fake_device("float32")
    x, w, b = (dev.to_device(a) for a in (np.ones((2, 6, 6, 3)), np.ones((3, 3, 3, 4)), np.ones(4)))
    y, cache = conv.conv_forward(dev, x, w, b, 1, 1)
    dw, db = dev.empty(w.shape), dev.empty(b.shape)
    _, pooled = conv.maxpool_forward(dev, x, 2)
    dy = dev.to_device(np.ones((2, 3, 3, 3)))
    counted = {
        "convolution": lambda: conv.conv_forward(dev, x, w, b, 1, 1),
        "its backward": lambda: conv.conv_backward(dev, y, cache, dw, db),
        "pooling": lambda: conv.maxpool_forward(dev, x, 2),
        "pooling's backward": lambda: conv.maxpool_backward(dev, dy, pooled),
    }
    assert {name: launches(function) for name, function in counted.items()} == {
        "convolution": 3,
        "its backward": 6,
        "pooling": 1,
        "pooling's backward": 1,
    }


STEPS = """
import resource
import numpy as np
import tinygrok as tg
from tinygrok.engine.device import get_device
from tinygrok.tasks.images import Images
x = np.random.default_rng(0).normal(size=(32, 32, 32, 3))
net = tg.vgg((32, 32, 3), 10, (16, "M", 16, "M"))
images = Images(x, np.arange(32) % 10, x[:1], np.arange(1))
dev = get_device("cpu", threads=1)
run = tg.ImageTraining.on_task(net, images, batch=32, device=dev)
for t in range(1, 9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run.step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what glibc's malloc keeps")
def test_a_step_asks_the_system_for_no_memory():
    """It touches few pages for the first time; thousands if freed memory were given back."""
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    faults = [int(word) for word in done.stdout.split()]
    assert max(faults[3:]) < 100, faults


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("patches", "h < 0 ||", ""),
        ("patches", "n < end ?", "n <= end ?"),
        ("patches", "-begin;", "0;"),
        ("patches", "row / Wo % Ho * s", "row / Wo % Ho"),
        ("patches_backward", "row % W + p", "row % W"),
        ("patches_backward", "&& j < Wo", ""),
        ("patches_backward", "+= rows", "= rows"),
        ("patches_backward", "u < k && i >= 0", "u < k && i > 0"),
        ("maxpool", "x[from + c] > y[at + c]", "x[from + c] >= y[at + c]"),
        ("maxpool", "n / k * W", "n / k"),
        ("maxpool_backward", "h / k < Ho && ", ""),
        ("maxpool_backward", "h % k * k", "h % k"),
    ],
)
def test_a_wrong_body_is_found(monkeypatch, name, right, wrong):
    kernel = getattr(row_kernels, name)
    assert kernel.cuda.count(right) == 1
    monkeypatch.setattr(row_kernels, name, replace(kernel, cuda=kernel.cuda.replace(right, wrong)))
    KERNELS[name] = kernel  # where the broken one put itself
    found = 0
    for other, which in cases():
        if other == name:
            inputs, outputs = given(name, which, "float64")
            try:
                equal(run("fake", name, inputs, outputs), plain(name, inputs))
            except (AssertionError, xp.Refused):
                found += 1
    assert found
