"""Gathers and structured sums of embeddings as kernels by row: NumPy's body, the compiled one and
the CUDA body (blocks of threads in two orders) beside plain loops in float64; and the operations
with compiled kernels."""

from dataclasses import replace

import fakecupy as xp
import numpy as np
import pytest
from test_row_kernels import BLOCKS, each_block, each_dtype

import tinygrok as tg
from tinygrok.engine import compiled, row_kernels
from tinygrok.engine.device import Device, get_device
from tinygrok.engine.kernels import KERNELS
from tinygrok.ops.embedding import RowIndex, embedding_backward, embedding_forward

pytestmark = pytest.mark.skipif(xp.COMPILER is None, reason="no C++ compiler for the CUDA bodies")

LOOPS = compiled.load()[0] if xp.COMPILER else {}
SIZES = {  # members, tables, rows of a table, length of a row, inputs
    "pair": ((), 2, 7, 33, 40),
    "one table": ((), 1, 50, 5, 12),
    "rows without inputs": ((3,), 2, 40, 8, 6),
    "one row": ((2,), 3, 1, 1, 9),
    "members": ((4,), 2, 5, 300, 20),
    "one input": ((2,), 2, 3, 4, 1),
}
each_size = pytest.mark.parametrize("size", SIZES)
each_own = pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])


def draw(*shape):
    """Numbers of few bits: sums of them are exact."""
    return np.random.default_rng(sum(shape)).integers(-40, 40, shape) / 8


def case(size, own):
    """(u, dh, the index)"""
    lead, S, P, N, B = SIZES[size]
    index = np.random.default_rng(5).integers(0, P, (*(lead if own else ()), S, B))
    return draw(*lead, S, P, N), draw(*lead, B, N), index


def plain(u, dh, index, du):
    """h and du plus the sums, by loops."""
    h, du = np.zeros(dh.shape), du.astype(float)
    every = np.broadcast_to(index, (*u.shape[:-3], *index.shape[-2:]))
    for *e, s, b in np.ndindex(every.shape):
        n = every[(*e, s, b)]
        h[(*e, b)] += u[(*e, s, n)]
        du[(*e, s, n)] += dh[(*e, b)]
    return h, du


def run(way, name, inputs, output, block="alone"):
    """The output of a kernel by "numpy", as "compiled" for the CPU, or on the "fake" GPU."""
    made = output.copy()
    kernel = getattr(row_kernels, name)
    if way == "fake":
        dev, made = xp.fake_device(output.dtype.name), xp.asarray(made)
        given = [xp.asarray(a) if isinstance(a, np.ndarray) else a for a in inputs]
        with xp.block_of(*BLOCKS[block]):
            kernel(dev, *given, made)
        return made.get()
    with np.errstate(all="ignore"):
        assert (kernel.numpy if way == "numpy" else LOOPS[name])(*inputs, made) is not False
    return made


def given(name, size, own, dtype, accumulate=False):
    """(inputs, output, what is expected) of a kernel."""
    u, dh, index = case(size, own)
    _, S, P, _, B = SIZES[size]
    before = draw(*u.shape) if accumulate else np.zeros(u.shape)
    h, du = plain(u, dh, index, before)
    rows = RowIndex(get_device("cpu", threads=1, kernels="compiled"), index, P)
    if name == "gather_sum":
        return (u.astype(dtype), rows.index, S, P, B), np.full(h.shape, np.nan, dtype), h
    output = before.astype(dtype) if accumulate else np.full(du.shape, np.nan, dtype)
    inputs = (dh.astype(dtype), rows.order, rows.starts, S, P, B, int(accumulate))
    return inputs, output, du


CASES = [("gather_sum", False), ("segment_sum", False), ("segment_sum", True)]
each_case = pytest.mark.parametrize(("name", "accumulate"), CASES)


@each_dtype
@each_own
@each_size
@each_case
def test_numpy_and_compiled_as_plain_loops(name, accumulate, size, own, dtype):
    inputs, output, expected = given(name, size, own, dtype, accumulate)
    for way in ("numpy", "compiled"):
        np.testing.assert_array_equal(run(way, name, inputs, output), expected)


@each_block
@each_own
@each_size
@each_case
def test_cuda_body_by_blocks_of_threads(name, accumulate, size, own, block):
    inputs, output, expected = given(name, size, own, "float32", accumulate)
    np.testing.assert_array_equal(run("fake", name, inputs, output, block), expected)


@each_dtype
@each_case
@pytest.mark.parametrize("way", ["compiled", "fake"])
def test_nan_and_infinity_as_in_numpy(way, name, accumulate, dtype):
    (x, *rest), output, _ = given(name, "members", True, dtype, accumulate)
    x.flat[::7], x.flat[3::11], x.flat[4::11] = np.nan, np.inf, -np.inf
    found = [run(each, name, (x, *rest), output) for each in (way, "numpy")]
    np.testing.assert_array_equal(*found)


def operation(dev, u, dh, index, dtype=None):
    """h, du and du added to ones."""
    rows = RowIndex(dev, index, u.shape[-2])
    on_device = dev.to_device if dtype is None else lambda x: x.astype(dtype)
    h = dev.empty(dh.shape, dtype)
    embedding_forward(dev, on_device(u), rows, h)
    du, more = np.full(u.shape, np.nan, h.dtype), np.ones(u.shape, h.dtype)
    embedding_backward(dev, on_device(dh), (rows,), du)
    embedding_backward(dev, on_device(dh), (rows,), more, accumulate=True)
    return h, du, more


@each_dtype
@each_own
@each_size
def test_the_operation_with_compiled_kernels(size, own, dtype):
    """Beside NumPy's own way; random numbers, so that sums round."""
    u, dh, index = case(size, own)
    rng = np.random.default_rng(1)
    u, dh = rng.normal(size=u.shape), rng.normal(size=dh.shape)
    found = []
    for dev in (Device("cpu", np, dtype), get_device("cpu", dtype, 1, kernels="compiled")):
        assert (RowIndex(dev, index, u.shape[-2]).groups is None) == (dev.kernels == "compiled")
        found.append(operation(dev, u, dh, index))
    for theirs, ours in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", ["float16", "complex128", "longdouble"])
def test_numbers_that_compiled_loops_do_not_take(dtype):
    u, dh, index = case("pair", False)
    dev = get_device("cpu", threads=1, kernels="compiled")
    h, du = plain(u, dh, index, np.zeros(u.shape))
    for ours, theirs in zip(operation(dev, u, dh, index, dtype), (h, du, du + 1), strict=True):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, theirs)


def test_arrays_with_gaps():
    u, dh, index = case("members", True)
    dev = get_device("cpu", "float64", 1, kernels="compiled")
    rows = RowIndex(dev, index, u.shape[-2])
    wide = [np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan)[..., ::2] for x in (u, dh, u, dh)]
    wide[0][...], wide[1][...] = u, dh
    assert not LOOPS["gather_sum"](wide[0], rows.index, 2, 5, 20, wide[3])
    assert not LOOPS["segment_sum"](wide[1], rows.order, rows.starts, 2, 5, 20, 0, wide[2])
    assert np.isnan(wide[2]).all()
    embedding_forward(dev, wide[0], rows, wide[3])
    embedding_backward(dev, wide[1], (rows,), wide[2])
    h, du = plain(u, dh, index, np.zeros(u.shape))
    np.testing.assert_array_equal(wide[3], h)
    np.testing.assert_array_equal(wide[2], du)


@pytest.mark.parametrize("batchnorm", [False, True])
def test_a_compiled_step_of_a_network_leaves_nothing_to_numpy(batchnorm, monkeypatch):
    """With BatchNorm the shards are of neurons: tables and their gradients have gaps."""
    called = compiled.Loop.__call__
    refused = []

    def watched(loop, *args):
        taken = called(loop, *args)
        if not taken:
            refused.append(loop.kernel.name)
        return taken

    monkeypatch.setattr(compiled.Loop, "__call__", watched)
    weights = {}
    for kernels in ("numpy", "compiled"):
        dev = get_device("cpu", "float64", threads=2, kernels=kernels)
        net = tg.TwoLayerNet(p=97, width=500, batchnorm=batchnorm)
        task = tg.addition(97)
        options = {"fraction": 0.5, "seed": 0, "lr": 0.01, "device": dev}
        run = tg.Training.on_task(net, task, **options)
        run.fit(steps=2)
        weights[kernels] = run.params.to_host()
    assert not refused
    for name, weight in weights["numpy"].items():
        np.testing.assert_allclose(weights["compiled"][name], weight, rtol=1e-9, atol=1e-12)


def test_the_index_of_a_shard_has_no_gaps():
    """Columns of the inputs have gaps: compiled loops would leave them to NumPy."""
    dev = get_device("cpu", threads=1, kernels="compiled")
    for shard in (np.zeros((2, 9), int)[:, 2:6], np.zeros((9, 2), int).T):
        rows = RowIndex(dev, shard, 3)
        assert all(a.flags.c_contiguous for a in (rows.index, rows.order, rows.starts))


def test_rows_for_a_pass_forward_only():
    u, dh, index = case("pair", False)
    dev = get_device("cpu", "float64", 1, kernels="compiled")
    h, _ = embedding_forward(dev, u, RowIndex(dev, index, 7, backward=False))
    np.testing.assert_array_equal(h, plain(u, dh, index, u)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("gather_sum", "% rows.size()", ""),
        ("gather_sum", "(e * S + s) * P", "s * P"),
        ("gather_sum", "first + s * B", "first"),
        ("gather_sum", "+= u", "= u"),
        ("segment_sum", "(starts.size() / (P + 1))", "S"),
        ("segment_sum", "(e * B + order[begin + j])", "order[begin + j]"),
        ("segment_sum", "accumulate ? du[at + n] : T(0)", "T(0)"),
        ("segment_sum", "sorted * (P + 1)", "sorted * P"),
        ("segment_sum", "j < starts[t + 1]", "j <= starts[t + 1]"),
    ],
)
def test_a_wrong_body_is_found(monkeypatch, name, right, wrong):
    kernel = getattr(row_kernels, name)
    assert kernel.cuda.count(right) == 1
    monkeypatch.setattr(row_kernels, name, replace(kernel, cuda=kernel.cuda.replace(right, wrong)))
    KERNELS[name] = kernel  # where the broken one put itself
    found = 0
    for own in (False, True):
        for accumulate in {accumulate for other, accumulate in CASES if other == name}:
            inputs, output, expected = given(name, "members", own, "float64", accumulate)
            try:
                np.testing.assert_array_equal(run("fake", name, inputs, output), expected)
            except (AssertionError, xp.Refused):
                found += 1
    assert found
