"""Kernels by row: rows of any length, in place, shared arguments, NaN and infinity, and threads
that must wait for each other, all in the CUDA text compiled as C++; and the launches they save."""

from dataclasses import replace

import fakecupy as xp
import numpy as np
import pytest

from tinygrok.engine import row_kernels
from tinygrok.engine.device import Device
from tinygrok.engine.kernels import KERNELS as TABLE
from tinygrok.engine.kernels import Fused
from tinygrok.models.gpt import GPT
from tinygrok.models.protocol import Mode
from tinygrok.models.tokens import Tokens
from tinygrok.ops import attention, loss, norm

pytestmark = pytest.mark.skipif(xp.COMPILER is None, reason="no C++ compiler for the CUDA bodies")

LENGTHS = (1, 2, 3, 31, 32, 33, 256, 257, 1000, 50_000)
BLOCKS = {  # threads of a block, and whether they run in the order of their numbers
    "alone": (1, True),
    "4": (4, True),
    "4 backwards": (4, False),
    "32": (32, True),
    "32 backwards": (32, False),
    "256": (256, True),
}
each_block = pytest.mark.parametrize("block", BLOCKS)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def cases(lead, N, dtype, rng=None):
    """{kernel: (inputs, shapes of outputs)}, of a shape (*lead, N), two rows of queries, members'
    gains; what a shared argument lacks are the leading axes."""
    rng = rng or np.random.default_rng(N)

    def draw(*shape):
        return rng.normal(0, 2, shape).astype(dtype)

    x = draw(*lead, N)
    p = np.exp(x - x.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    xhat = draw(*lead, N)
    dy = draw(*lead, N)
    mask = np.where(np.tri(lead[-1], N, N - lead[-1]) > 0, 0, -np.inf).astype(dtype)
    mask[:, 0] = 0
    member_gain = draw(*lead[:-1], 1, N)
    rstd = np.abs(draw(*lead, 1))
    target = rng.integers(0, N, (*lead, 1))
    return {
        "softmax": ((x, None), [x.shape]),
        "masked softmax": ((x, mask), [x.shape]),
        "softmax_backward": ((draw(*lead, 5), draw(*lead, 5), p, draw(*lead, N)), [x.shape]),
        "cross_entropy": ((x, target), [rstd.shape, x.shape]),
        "mse": ((x, target), [rstd.shape, x.shape]),
        "layernorm": (
            (3 + x, member_gain, draw(*lead[:-1], 1, N), 1e-5),
            [rstd.shape, x.shape, x.shape],
        ),
        "layernorm without shift": (
            (3 + x, member_gain, None, 1e-5),
            [rstd.shape, x.shape, x.shape],
        ),
        "layernorm_backward": ((dy, xhat, rstd, member_gain, dy * xhat), [x.shape]),
    }


KERNELS = list(cases((2, 3), 4, "float32"))
LEAST = dict.fromkeys(KERNELS, 0.0) | {"cross_entropy": 1.0}  # probabilities near 1, minus 1


def named(case):
    """The kernel of a case: "masked softmax" and "layernorm without shift" are settings."""
    return getattr(row_kernels, case.removeprefix("masked ").removesuffix(" without shift"))


def both(name, inputs, outputs, block="alone", alias=None):
    """The outputs of the NumPy body and those of the CUDA body. alias: {output: input} in one
    array."""
    kernel = named(name)
    results = []
    for device in (None, xp.fake_device(inputs[0].dtype.name)):
        given = [a.copy() if isinstance(a, np.ndarray) else a for a in inputs]
        made = [np.full(shape, np.nan, inputs[0].dtype) for shape in outputs]
        if device is not None:
            given = [xp.asarray(a) if isinstance(a, np.ndarray) else a for a in given]
            made = [xp.asarray(a) for a in made]
        for output, source in (alias or {}).items():
            made[output] = given[source]
        if device is None:
            with np.errstate(all="ignore"):
                kernel.numpy(*given, *made)
            results.append(made)
        else:
            with xp.block_of(*BLOCKS[block]):
                kernel(device, *given, *made)
            results.append([a.get() for a in made])
    return results


def agree(results, dtype, ulp=8, least=0.0):
    """A few units in the last place of the largest entry of a row, or of `least`."""
    for theirs, ours in zip(*results, strict=True):
        theirs, ours = (np.atleast_1d(a).astype(float) for a in (theirs, ours))
        size = np.abs(theirs).max(axis=-1, keepdims=True)
        size = np.maximum(size, max(least, np.finfo(dtype).tiny))
        within = ulp * np.finfo(dtype).eps
        np.testing.assert_allclose(ours / size, theirs / size, rtol=0, atol=within)


def test_every_kernel_by_row_is_here():
    """Those of images have a file of their own, test_image_kernels.py."""
    kernels = [x for x in vars(row_kernels).values() if isinstance(x, Fused)]
    made = {x.name for x in kernels if x.launch is row_kernels.block_a_row}
    assert {named(case).name for case in KERNELS} == made


@each_dtype
@each_block
@pytest.mark.parametrize("name", KERNELS)
def test_rows_of_any_length(name, block, dtype):
    for N in LENGTHS:
        lead = (2, 3) if N < 1000 and BLOCKS[block][0] < 32 else (1, 2)
        inputs, outputs = cases(lead, N, dtype)[name]
        added = N / BLOCKS[block][0] if dtype == "float64" else 0  # by a thread, one after another
        cancels = name.startswith("layernorm")  # x - mean, where all x lie near the mean
        ulp = (50 if cancels else 8) + added**0.5
        agree(both(name, inputs, outputs, block), dtype, ulp, LEAST[name])


@pytest.mark.parametrize("name", KERNELS)
def test_float32_stays_within_a_few_ulp_of_float64(name):
    """Of rows of 50,000 elements with a mean far from 0: float32 sums would lose three digits."""
    inputs, outputs = cases((1, 2), 50_000, "float32")[name]
    wide = [
        a.astype("float64") if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
        for a in inputs
    ]
    (exact, _), (_, ours) = both(name, wide, outputs), both(name, inputs, outputs)
    agree((exact, ours), "float32", least=LEAST[name])


ALIASES = [  # kernel, {output: input}
    ("softmax", {0: 0}),
    ("masked softmax", {0: 0}),
    ("softmax_backward", {0: 3}),
    ("cross_entropy", {1: 0}),
    ("mse", {1: 0}),
    ("layernorm", {1: 0}),
    ("layernorm", {2: 0}),
    ("layernorm_backward", {0: 0}),
]


@each_block
@pytest.mark.parametrize(("name", "alias"), ALIASES, ids=str)
def test_in_place(name, alias, block):
    for N in (1, 7, 40, 300):
        inputs, outputs = cases((2, 3), N, "float64")[name]
        agree(both(name, inputs, outputs, block, alias), "float64", least=LEAST[name])


def test_softmax_backward_of_softmax_itself():
    rng = np.random.default_rng(1)
    dy, y = rng.normal(size=(2, 3, 40))
    for alias in ({}, {0: 0}, {0: 3}):
        agree(both("softmax_backward", (dy, y, y, dy), [dy.shape], "32", alias), "float64")


HARD = {
    "NaN": [[np.nan, 1, 2], [0, 1, np.nan]],
    "infinity": [[np.inf, 1, 2], [0, -np.inf, 5]],
    "two infinities": [[np.inf, np.inf, 2], [np.inf, -np.inf, 5]],
    "fully masked": [[-np.inf] * 3, [1, -np.inf, 2]],
    "large": [[1e4, 0, -1e4], [-1e4, -1e4, -1e4]],
}


@each_dtype
@each_block
@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("name", ["softmax", "masked softmax", "cross_entropy", "mse", "layernorm"])
def test_nan_and_infinity_as_in_numpy(name, hard, block, dtype):
    x = np.array(HARD[hard], dtype)
    N = x.shape[-1]
    gain = np.ones((1, N), dtype)
    inputs, outputs = {
        "softmax": ((x, None), [x.shape]),
        "masked softmax": ((np.zeros_like(x), x), [x.shape]),
        "cross_entropy": ((x, np.array([[1], [1]])), [(2, 1), x.shape]),
        "mse": ((x, np.array([[1], [1]])), [(2, 1), x.shape]),
        "layernorm": ((x, gain, None, 1e-5), [(2, 1), x.shape, x.shape]),
    }[name]
    for theirs, ours in zip(*both(name, inputs, outputs, block), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@each_dtype
def test_shared_arguments_and_strides(dtype):
    """One target, mask or gain for all members; rows with gaps, heads first, columns first."""
    rng = np.random.default_rng(3)
    dev = xp.fake_device(dtype)
    host_dev = Device("cpu", np, dtype)

    def pair(*shape):
        host = rng.normal(0, 2, shape).astype(dtype)
        return host, xp.asarray(host)

    host, device = pair(3, 4, 6, 5)  # (B, T, H, N)
    for view in (
        lambda a: a.swapaxes(1, 2),
        lambda a: a[..., ::2],
        lambda a: a[:, 1:, :, 1:4],
        lambda a: a.T,
    ):
        x, d = view(host), view(device)
        target = rng.integers(0, x.shape[-1], x.shape[-2])
        expected = loss.cross_entropy_rows(host_dev, x, target)
        ours = loss.cross_entropy_rows(dev, d, xp.asarray(target))
        agree((expected, [a.get() for a in ours]), dtype, least=1.0)
        mask, device_mask = pair(*x.shape[-2:])
        expected, ours = np.empty_like(x), xp.empty_like(d)
        row_kernels.softmax(host_dev, x, mask, expected)
        row_kernels.softmax(dev, d, device_mask, ours)
        agree(((expected,), (ours.get(),)), dtype)
        gain, device_gain = pair(x.shape[-1])
        y, _ = norm.layernorm_forward(host_dev, x, gain)
        ours, _ = norm.layernorm_forward(dev, d, device_gain)
        agree(((y,), (ours.get(),)), dtype, ulp=50)
    wide = np.zeros((4, 6), dtype)
    written = xp.asarray(wide)
    row_kernels.softmax(dev, device[0, 0, :4, :3], None, written[:, ::2])
    expected = np.exp(host[0, 0, :4, :3])
    wide[:, ::2] = expected / expected.sum(axis=-1, keepdims=True)
    agree(((wide,), (written.get(),)), dtype)


def test_what_the_fake_refuses():
    dev = xp.fake_device("float32")
    x = xp.zeros((4, 6), "float32")
    with pytest.raises(xp.Refused, match="overlaps"):
        row_kernels.softmax(dev, x[:3], None, x[1:])
    with pytest.raises(xp.Refused, match="Type is mismatched"):
        row_kernels.softmax(dev, x, None, xp.zeros((4, 6), "float64"))
    with pytest.raises(xp.Refused, match="index outside"):
        loss.cross_entropy_rows(dev, x, xp.asarray([0, 1, 2, 60]))
    kernel = xp.ElementwiseKernel("T x", "raw T y", "y[i] = x;", "probe")
    with pytest.raises(ValueError, match="raw"):
        kernel(x, x.copy(), size=32, block_size=32)
    kernel = xp.ElementwiseKernel("raw T x", "raw T y", "y[i] = x[i];", "probe")
    with pytest.raises(xp.Refused, match="33 threads"):
        kernel(x, x.copy(), size=33, block_size=32)


# -- the tests can fail ----------------------------------------------------------------------------

WAIT = "__syncthreads()"


def altered(name, right, wrong, nth=0):
    """A kernel with the nth occurrence of a text in its CUDA replaced."""
    kernel = named(name)
    source = kernel.preamble + "// body" + kernel.cuda
    parts = source.split(right)
    source = right.join(parts[: nth + 1]) + wrong + right.join(parts[nth + 1 :])
    preamble, cuda = source.split("// body")
    return replace(kernel, cuda=cuda, preamble=preamble)


def caught(monkeypatch, name, *change):
    """Whether some block of threads computes something else with the change."""
    kernel = named(name)
    monkeypatch.setattr(row_kernels, kernel.name, altered(name, *change))
    TABLE[kernel.name] = kernel  # where the broken one put itself
    found = False
    for block in ("4", "4 backwards"):
        inputs, outputs = cases((2, 3), 40, "float64")[name]
        try:
            agree(both(name, inputs, outputs, block), "float64")
        except (AssertionError, xp.Refused):
            found = True
    monkeypatch.undo()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("nth", range(3))
def test_a_missing_barrier_is_found(monkeypatch, nth):
    assert row_kernels.softmax_backward.preamble.count(WAIT) == 3
    assert caught(monkeypatch, "softmax_backward", WAIT, "void(0)", nth)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("softmax", "/= total", "/= total + T(1)"),
        ("masked softmax", "at % mask.size()", "at"),
        ("masked softmax", "+ mask[m + n]", "+ mask[m]"),
        ("softmax_backward", "p[at + n];", "p[at];"),
        ("cross_entropy", "label % blockDim.x", "label"),
        ("cross_entropy", "if (threadIdx.x == 0) loss", "if (i == 0) loss"),
        ("mse", "label % blockDim.x", "label"),
        ("mse", "/ N;", ";"),
        ("mse", "target[row % target.size()]", "target[0]"),
        ("layernorm", "(x.size() / gain.size())", "1"),
        ("layernorm", " / N) + eps", " / (N - 1)) + eps"),
        ("layernorm without shift", "shift.size() ? ", "true ? "),
        ("layernorm_backward", "- mean)", ")"),
    ],
)
def test_a_wrong_body_is_found(monkeypatch, name, right, wrong):
    assert right in named(name).cuda
    assert caught(monkeypatch, name, right, wrong)


# -- launches --------------------------------------------------------------------------------------


def launches(function):
    """Those of a second call, when the buffers are there."""
    function()
    xp.reset()
    function()
    return xp.counts.launches


def plain_softmax(x):
    y = x - x.max(axis=-1, keepdims=True)
    xp.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)


def test_launches_of_the_operations():
    """One each, where chains of NumPy calls took 5 to 11."""
    dev = xp.fake_device("float32")
    rng = np.random.default_rng(0)

    def draw(*shape):
        return dev.to_device(rng.normal(size=shape))

    x, dy, q, k, v = (draw(2, 6, 12) for _ in range(5))
    gain, shift, dgain, dshift = (draw(2, 12) for _ in range(4))
    target = dev.to_device(rng.integers(0, 12, 6))
    y, xhat, dq, dk, dv = (dev.empty(x.shape) for _ in range(5))
    softmax = loss.softmax_forward(dev, x)[1]
    ln = norm.layernorm_forward(dev, x, gain, shift)[1]
    mask = attention.causal_mask_host(dev, range(6), 6)
    att = attention.attention_forward(dev, q, k, v, 3, mask)[1]
    counted = {
        "plain softmax": lambda: plain_softmax(x),
        "softmax": lambda: loss.softmax_forward(dev, x),
        "softmax backward": lambda: loss.softmax_backward(dev, dy, softmax),
        "cross-entropy rows": lambda: loss.cross_entropy_rows(dev, x, target, y),
        "mean-square rows": lambda: loss.mse_rows(dev, x, target, y),
        "layernorm": lambda: norm.layernorm_forward(dev, x, gain, shift, xhat=xhat, out=y),
        "layernorm dx": lambda: norm.layernorm_backward(dev, dy, ln, dx=y),
        "layernorm backward": lambda: norm.layernorm_backward(dev, dy, ln, dgain, dshift, dx=y),
        "attention": lambda: attention.attention_forward(dev, q, k, v, 3, mask, y),
        "attention backward": lambda: attention.attention_backward(dev, dy, att, dq, dk, dv),
    }
    assert {name: launches(function) for name, function in counted.items()} == {
        "plain softmax": 5,
        "softmax": 1,  # 5 before
        "softmax backward": 1,  # 4
        "cross-entropy rows": 1,  # 9
        "mean-square rows": 1,  # 4
        "layernorm": 1,  # 10
        "layernorm dx": 2,  # 9: and the product dy xhat
        "layernorm backward": 6,  # 13: and two sums over the rows, each copied
        "attention": 1 + 3 + 1 + 3,  # 13: q / sqrt D, scores, softmax, values; 3 heads
        "attention backward": 1 + 12 + 1,  # 17
    }


def test_launches_of_a_step_of_the_decoder():
    """Forward, loss and backward; two blocks of two heads, 57 products. With chains: 218."""
    dev, T, V = xp.fake_device("float32"), 8, 11
    model = GPT.numbers(V, 16, 2, 2, T + 1, activation="gelu")
    weights = model.init(np.random.default_rng(0))
    w = {name: dev.to_device(x) for name, x in weights.items()}
    g = {name: dev.empty(x.shape) for name, x in weights.items()}
    tokens = np.random.default_rng(1).integers(0, V, (3, T + 1))
    batch = Tokens(dev, tokens, V, slice(0, -1))
    target = dev.to_device(tokens[:, 1:].reshape(-1))

    def step():
        z, tape = model.forward(dev, w, batch, Mode(buffer=dev.workspace.get))
        _, cache = loss.cross_entropy_forward(dev, z, target, out=z)
        model.backward(dev, loss.cross_entropy_backward(dev, 1.0, cache, dlogits=z), tape, g)

    assert launches(step) <= 119
