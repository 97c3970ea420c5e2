"""The fake refuses what it is there to refuse, counts what it is there to count, and lets clean
code pass."""

import fakecupy as xp
import numpy as np
import pytest
from conftest import DEVICES

from tinygrok.engine import kernels
from tinygrok.engine.gemm import matmul
from tinygrok.ops.linear import linear_backward, linear_forward
from tinygrok.ops.loss import cross_entropy_backward, cross_entropy_forward

HOST = np.arange(12, dtype="float32").reshape(3, 4)


@pytest.fixture
def x():
    return xp.asarray(HOST)


def other_device():
    with xp.cuda.Device(1):
        return xp.ones((3, 4), dtype="float32")


def kernel(body="y = x;", inputs="T x", outputs="T y"):
    return xp.ElementwiseKernel(inputs, outputs, body, "probe")


CONVERSION = "implicit"
WAIT = "waits for the device"
DTYPE = "float64 result"
KEYWORD = "unexpected"
ABSENT = "no attribute"
OVERLAP = "overlaps"
OUTSIDE = "index outside"
MISMATCH = "Type is mismatched"
SHAPE = "Out shape is mismatched"
REFUSED = {  # what: (part of the message, the offence)
    "numpy ufunc": (CONVERSION, lambda x: np.exp(x)),
    "numpy function": (CONVERSION, lambda x: np.sum(x)),
    "numpy conversion": (CONVERSION, lambda x: np.asarray(x)),
    "numpy scalar on the left": (CONVERSION, lambda x: np.float32(2) * x),
    "host operand": ("operand", lambda x: x + HOST),
    "host operand on the left": (CONVERSION, lambda x: HOST + x),
    "host operand in place": ("operand", lambda x: x.__iadd__(HOST)),
    "host argument": ("operand", lambda x: xp.maximum(x, HOST)),
    "host out": ("out must", lambda x: xp.exp(x, out=HOST.copy())),
    "host out of a reduction": ("out must", lambda x: xp.sum(x, axis=0, out=HOST[0].copy())),
    "host index": ("host index", lambda x: x[np.array([0, 1])]),
    "host assignment": ("assignment of a", lambda x: x.__setitem__(..., HOST)),
    "host array in a function": ("host array", lambda x: xp.concatenate((HOST, HOST))),
    "list argument": ("list operand", lambda x: xp.maximum(x, [0, 0, 0, 0])),
    "list in a function": ("a list", lambda x: xp.sum([1.0, 2.0])),
    "list index": ("host index", lambda x: x[[0, 1]]),
    "float()": (WAIT, lambda x: float(x.sum())),
    "if": (WAIT, lambda x: 1 if x.sum() > 1 else 0),
    "item": (WAIT, lambda x: x.sum().item()),
    "get": (WAIT, lambda x: x.get()),
    "asnumpy": (WAIT, lambda x: xp.asnumpy(x)),
    "repr": (WAIT, lambda x: repr(x)),
    "boolean mask": (WAIT, lambda x: x[x > 0]),
    "nonzero": (WAIT, lambda x: xp.nonzero(x)),
    "where of one argument": (WAIT, lambda x: xp.where(x > 0)),
    "synchronize": (WAIT, lambda x: xp.cuda.Stream.null.synchronize()),
    "row iteration": ("iteration", lambda x: list(x)),
    "float64 scalar": (DTYPE, lambda x: x * np.float64(2)),
    "float64 scalar of a host function": (DTYPE, lambda x: x / np.sqrt(3)),
    "zeros without dtype": (DTYPE, lambda x: xp.zeros((2, 2))),
    "full of floats": (DTYPE, lambda x: xp.full((2,), 0.5)),
    "arange of floats": (DTYPE, lambda x: xp.arange(0.0, 1.0, 0.1)),
    "mean of integers": (DTYPE, lambda x: xp.zeros((3,), dtype="int64").mean()),
    "sum(where=)": (KEYWORD, lambda x: xp.sum(x, where=x > 0)),
    "ufunc(where=)": (KEYWORD, lambda x: xp.exp(x, where=x > 0)),
    "take(mode=)": (KEYWORD, lambda x: x.take(xp.asarray([0]), axis=0, mode="clip")),
    "max(initial=)": (KEYWORD, lambda x: x.max(axis=0, initial=0)),
    "vecdot": (ABSENT, lambda x: xp.vecdot(x, x)),
    "insert": (ABSENT, lambda x: xp.insert(x, 0, 1)),
    "errstate": (ABSENT, lambda x: xp.errstate()),
    "random": (ABSENT, lambda x: xp.random.rand(3)),
    "duplicate scatter": ("repeated indices", lambda x: x.__setitem__(xp.asarray([0, 0]), 1.0)),
    "index out of range": ("out of bounds", lambda x: x[xp.asarray([5])]),
    "assignment out of range": ("out of bounds", lambda x: x.__setitem__(xp.asarray([5]), 1.0)),
    "out of another shape": (SHAPE, lambda x: xp.exp(x, out=xp.empty((2, 3, 4), dtype="float32"))),
    "matmul of two dtypes": ("dtypes", lambda x: xp.matmul(x, x.T.astype("int32"))),
    "matmul into a view": (
        "C-contiguous",
        lambda x: xp.matmul(x.T, x, out=xp.empty((4, 8), dtype="float32")[:, ::2]),
    ),
    "matmul into an operand": (
        OVERLAP,
        lambda x: (lambda q: xp.matmul(q, q, out=q))(xp.zeros((3, 3), dtype="float32")),
    ),
    "array of another device": ("device 1", lambda x: x + other_device()),
    "kernel: two types for T": (MISMATCH, lambda x: kernel()(x, xp.empty((3, 4), dtype="int32"))),
    "kernel: wrong integer type": (
        MISMATCH,
        lambda x: kernel(inputs="int32 x")(xp.zeros((4,), dtype="int64"), x[0]),
    ),
    "kernel: host argument": ("is a ndarray", lambda x: kernel()(HOST, x)),
    "kernel: out too small": (SHAPE, lambda x: kernel()(x, x[0].copy())),
    "kernel: raw and not contiguous": (
        "raw",
        lambda x: kernel("y = x[i];", "raw T x")(x.T, x.T.copy()),
    ),
    "kernel: index outside": (OUTSIDE, lambda x: kernel("y = x[i + 1];", "raw T x")(x, x.copy())),
    "kernel: number too large": ("does not fit", lambda x: kernel("y = k;", "uint32 k")(2**32, x)),
    "kernel: missing output": ("arguments", lambda x: kernel()(x)),
    "kernel: assignment to an input": ("compile", lambda x: kernel("x = T(0);")(x, x.copy())),
    "kernel: undeclared name": ("compile", lambda x: kernel("y = z;")(x, x.copy())),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses_what_cupy_would_not_do(what, x):
    message, offence = REFUSED[what]
    if message in ("compile", OUTSIDE) and xp.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    with (
        pytest.raises((TypeError, ValueError, AttributeError, IndexError), match=message),
        xp.hot(dtype="float32"),
    ):
        offence(x)


def test_refused_names_are_absent_from_the_real_package():
    assert not {"vecdot", "insert", "errstate", "block", "geomspace"} & set(xp.API)


def test_empty_memory_is_poisoned():
    assert np.isnan(xp.empty((3,), dtype="float32").get()).all()
    assert (xp.empty((3,), dtype="int64").get() < -(2**40)).all()
    assert np.isnan(xp.empty_like(xp.zeros((2,))).get()).all()


def test_syncs_buffers_and_uploads_are_counted(x):
    xp.reset()
    y = x[1:].reshape(2, 4).swapaxes(0, 1)  # views
    assert xp.counts.allocs == 0
    y += 1
    assert (xp.counts.allocs, xp.counts.syncs) == (0, 0)
    total = (y * y).sum()
    assert total.shape == ()
    assert isinstance(total, xp.ndarray)
    assert (xp.counts.allocs, xp.counts.syncs) == (2, 0)
    assert float(total) == ((HOST[1:] + 1) ** 2).sum()
    xp.asnumpy(total), xp.asarray(HOST)
    assert (xp.counts.syncs, xp.counts.uploads) == (2, 1)


def test_hot_regions_end(x):
    with pytest.raises(xp.Refused, match="buffer"), xp.hot(alloc=False):
        x + 1
    assert float((x + 1).sum()) == (HOST + 1).sum()
    with xp.hot(dtype="float32", alloc=False) as counts:
        xp.multiply(x, 2, out=x)
    assert counts.syncs == 1


def test_elementwise_results_are_c_ordered(x):
    assert x.T.flags.f_contiguous
    assert (x.T * 2).flags.c_contiguous
    assert x.T.copy().flags.c_contiguous
    assert x.T.astype("float64").flags.c_contiguous


def test_batched_matmul_counts_hidden_copies(x):
    batch = xp.asarray(np.stack([HOST, HOST]))
    xp.matmul(batch, batch.swapaxes(-1, -2))
    assert xp.counts.matmul_copies == 1


def test_values_agree_with_numpy(x):
    for ours, theirs in (
        ((2 - x) / (x + 1), (2 - HOST) / (HOST + 1)),
        (x[1], HOST[1]),
        (x[..., None, 1:3], HOST[..., None, 1:3]),
        (x[xp.asarray([2, 0])], HOST[[2, 0]]),
        (x.argmax(axis=-1), HOST.argmax(axis=-1)),
        (xp.where(x > 3, x, 0), np.where(HOST > 3, HOST, 0)),
        (xp.concatenate([x, x], axis=1), np.concatenate([HOST, HOST], axis=1)),
        (xp.einsum("ij,kj->ik", x, x), np.einsum("ij,kj->ik", HOST, HOST)),
        (xp.linalg.norm(x, axis=1), np.linalg.norm(HOST, axis=1)),
        (-(abs(x) ** 2) @ x.T, -(np.abs(HOST) ** 2) @ HOST.T),
    ):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours.get(), theirs)


def test_kernel_broadcasts_casts_and_aliases(x):
    scaled = xp.ElementwiseKernel("T a, T b, int32 k", "T y", "y = a * b + T(k) + T(i);", "scaled")
    if xp.COMPILER is None:
        pytest.skip("needs a C++ compiler")
    y = xp.empty((3, 4), dtype="float32")
    assert scaled(x, x[0], 2, y) is y
    assert np.array_equal(y.get(), HOST * HOST[0] + 2 + np.arange(12).reshape(3, 4))
    scaled(x, 0.5, 0, x)  # in place
    assert np.array_equal(x.get(), HOST / 2 + np.arange(12).reshape(3, 4))
    wide = xp.zeros((3, 8), dtype="float32")
    kernel()(x, wide[:, ::2])  # CuPy writes into strided outputs
    assert np.array_equal(wide.get()[:, ::2], x.get())
    assert not wide.get()[:, 1::2].any()


def test_kernel_without_a_compiler_runs_the_numpy_body(x, monkeypatch):
    monkeypatch.setattr(xp, "COMPILER", None)
    y = xp.empty((3, 4), dtype="float32")
    kernels.ACTIVATIONS["square"].f(xp.fake_device(), x, y)
    assert np.array_equal(y.get(), HOST**2)


GEMM = {
    "handle": "handle",
    "transa": 0,
    "transb": 0,
    "m": 2,
    "n": 3,
    "k": 4,
    "alpha": "one",
    "A": "a",
    "Atype": 0,
    "lda": 2,
    "strideA": 8,
    "B": "b",
    "Btype": 0,
    "ldb": 4,
    "strideB": 12,
    "beta": "zero",
    "C": "c",
    "Ctype": 0,
    "ldc": 2,
    "strideC": 6,
    "batchCount": 2,
    "computeType": 68,
    "algo": -1,
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"lda": 1},
        {"ldb": 3},
        {"ldc": 1},
        {"strideC": 0},
        {"computeType": 70},
        {"Atype": 1},
        {"batchCount": 3},
        {"C": "a"},
        {"B": "host"},
        {"handle": 0},
        {"transa": 2},
    ],
)
def test_cublas_checks_its_arguments(change):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype("float32") for shape in ((2, 4, 2), (2, 3, 4)))
    da, db, dc = xp.asarray(a), xp.asarray(b), xp.empty((2, 3, 2), "float32")
    one, zero = np.float32([1]), np.float32([0])
    values = {
        "one": one.ctypes.data,
        "zero": zero.ctypes.data,
        "host": b.ctypes.data,
        "a": da.data.ptr,
        "b": db.data.ptr,
    }
    values |= {"c": dc.data.ptr, "handle": xp.cuda.device.get_cublas_handle()}
    arguments = [values.get(v, v) for v in (GEMM | change).values()]
    if change:
        with pytest.raises(xp.Refused, match="cuBLAS"):
            xp.cuda.cublas.gemmStridedBatchedEx(*arguments)
        return
    xp.cuda.cublas.gemmStridedBatchedEx(*arguments)
    # Row-major reading: the operands swap places.
    np.testing.assert_allclose(dc.get(), b @ a, rtol=1e-5)


def sketch(dev):
    """A linear classifier with members, forward and backward, on any device: (loss, dw, db, dx) on
    the host."""
    rng = np.random.default_rng(1)
    x, w, b = (dev.to_device(rng.standard_normal(s)) for s in ((5, 4), (2, 4, 3), (2, 3)))
    target = dev.to_device(rng.integers(0, 3, 5))
    dw, db = dev.empty((2, 4, 3)), dev.empty((2, 3))

    def step():
        z, cache = linear_forward(dev, x, w, b)
        loss, loss_cache = cross_entropy_forward(dev, z, target, out=z)
        dz = cross_entropy_backward(dev, 1.0, loss_cache, z)
        return loss, linear_backward(dev, dz, cache, dw, db)

    if dev.xp is xp:
        with xp.hot(dtype=dev.dtype):
            loss, dx = step()
    else:
        loss, dx = step()
    return [dev.to_host(a) for a in (loss, dw, db, dx)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clean_code_passes_and_agrees_with_numpy(dtype):
    fake, host = sketch(DEVICES[f"fake-{dtype}"]()), sketch(DEVICES[f"numpy-{dtype}"]())
    for ours, theirs in zip(fake, host, strict=True):
        np.testing.assert_allclose(
            ours, theirs, rtol=1e-5 if dtype == "float32" else 1e-13, atol=1e-7
        )


def test_gemm_allocates_nothing_for_transposed_views():
    dev = DEVICES["fake-float32"]()
    a, b, out = dev.zeros((2, 3, 4)), dev.zeros((2, 5, 4)), dev.empty((2, 3, 5))
    with xp.hot(dtype="float32", alloc=False):
        matmul(dev, a, b, out, tb=True)
        matmul(dev, a, b.swapaxes(-1, -2), out, accumulate=True)
    assert not out.get().any()
