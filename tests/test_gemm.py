"""engine.gemm.matmul against einsum in float64: flags, batch axes, shared operands, views with
strides, sizes of one."""

import itertools

import fakecupy
import numpy as np
import pytest

from tinygrok.engine.gemm import COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F, matmul, sum_rows

M, K, N, E, F = 3, 5, 4, 2, 3
LEADS = {  # leading axes of a and b
    "none": ((), ()),
    "members": ((E,), (E,)),
    "shared a": ((), (E,)),
    "shared b": ((E,), ()),
    "shared a of length 1": ((1,), (E,)),
    "two axes": ((E, F), (E, F)),
    "two axes, shared a": ((), (E, F)),
    "two axes, shared b": ((E, F), ()),
    "second axis only in a": ((F,), (E, F)),
    "second axis only in b": ((E, F), (F,)),
    "first axis only in a": ((E, 1), (E, F)),
    "first axis only in b": ((E, F), (E, 1)),
    "a has ones in front": ((1, F), (E, F)),
    "b has ones in front": ((E, F), (1, F)),
    "crossed": ((E, 1), (1, F)),
    "ones everywhere": ((1, 1), (1, 1)),
    "three axes": ((2, E, F), (E, F)),
}


def contiguous(x):
    return x


def transposed(x):
    """The same values, stored with the last two axes swapped."""
    return np.ascontiguousarray(x.swapaxes(-1, -2)), lambda d: d.swapaxes(-1, -2)


def wide(x):
    """Rows with a gap between them."""
    big = np.full((*x.shape[:-1], x.shape[-1] + 3), 9.0)
    big[..., 1 : 1 + x.shape[-1]] = x
    return big, lambda d: d[..., 1 : 1 + x.shape[-1]]


def gaps(x):
    """No axis has unit stride."""
    big = np.full((*x.shape[:-1], 2 * x.shape[-1]), 9.0)
    big[..., ::2] = x
    return big, lambda d: d[..., ::2]


def heads(x):
    """Axis -3 stored inside the rows, as heads are: (B, T, H, D) seen as (B, H, T, D)."""
    if x.ndim < 3:
        return x
    return np.ascontiguousarray(x.swapaxes(-3, -2)), lambda d: d.swapaxes(-3, -2)


def reversed_rows(x):
    return np.ascontiguousarray(x[..., ::-1, :]), lambda d: d[..., ::-1, :]


LAYOUTS = [contiguous, transposed, wide, gaps, heads, reversed_rows]


def place(dev, x, layout):
    """x on the device, as the view that a layout makes."""
    made = layout(x)
    base, view = made if isinstance(made, tuple) else (made, lambda d: d)
    return view(dev.to_device(base.copy()))


def check(
    dev,
    lead_a,
    lead_b,
    ta,
    tb,
    accumulate,
    layout_a=contiguous,
    layout_b=contiguous,
    layout_out=None,
    sizes=(M, K, N),
):
    m, k, n = sizes
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((*lead_a, m, k)), rng.standard_normal((*lead_b, k, n))
    expected = np.einsum("...mk,...kn->...mn", a, b)
    start = rng.standard_normal(expected.shape) if accumulate else np.full(expected.shape, np.nan)
    operands = [
        place(dev, np.ascontiguousarray(x.swapaxes(-1, -2)) if t else x, layout)
        for x, t, layout in ((a, ta, layout_a), (b, tb, layout_b))
    ]
    before = [dev.to_host(x).copy() for x in operands]
    out = (
        None
        if layout_out is None and not accumulate
        else place(dev, start, layout_out or contiguous)
    )
    result = matmul(dev, *operands, out, ta=ta, tb=tb, accumulate=accumulate)
    assert out is None or result is out
    assert result.shape == expected.shape
    assert result.dtype == dev.dtype
    tolerance = 1e-13 if dev.dtype == np.float64 else 2e-6
    expected = expected + start if accumulate else expected
    np.testing.assert_allclose(dev.to_host(result), expected, rtol=tolerance, atol=5 * tolerance)
    for x, y in zip(operands, before, strict=True):
        assert np.array_equal(dev.to_host(x), y)


FLAGS = list(itertools.product((False, True), (False, True), (False, True)))


@pytest.mark.parametrize("lead", LEADS)
def test_flags_and_leading_axes(dev, lead):
    for ta, tb, accumulate in FLAGS:
        check(dev, *LEADS[lead], ta, tb, accumulate)


@pytest.mark.parametrize(
    "lead",
    ["none", "members", "shared a", "two axes", "first axis only in b", "b has ones in front"],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_as_operands(dev, lead, layout):
    for (ta, tb, accumulate), other in itertools.product(FLAGS, (contiguous, layout)):
        check(dev, *LEADS[lead], ta, tb, accumulate, layout, other)
        check(dev, *LEADS[lead], ta, tb, accumulate, other, layout)


@pytest.mark.parametrize(
    "lead", ["none", "members", "shared b", "two axes", "crossed", "three axes"]
)
@pytest.mark.parametrize("layout", [contiguous, wide, heads, reversed_rows])
def test_views_as_out(dev, lead, layout):
    if layout is reversed_rows and dev.kind == "cuda":
        pytest.skip("rows in reverse order are not a layout that cuBLAS can write")
    for ta, tb, accumulate in FLAGS:
        check(dev, *LEADS[lead], ta, tb, accumulate, layout_out=layout)


@pytest.mark.parametrize("sizes", [s for s in itertools.product((1, 3), (1, 5), (1, 4)) if 1 in s])
@pytest.mark.parametrize("lead", ["none", "members", "shared b", "two axes", "ones everywhere"])
def test_sizes_of_one(dev, lead, sizes):
    for (ta, tb, accumulate), layout in itertools.product(
        FLAGS, (contiguous, transposed, wide, heads)
    ):
        check(dev, *LEADS[lead], ta, tb, accumulate, layout, layout, sizes=sizes)


def test_out_leaves_its_neighbours_alone(dev):
    out = dev.zeros((2, M, N + 3))
    a, b = dev.to_device(np.ones((2, M, K))), dev.to_device(np.ones((2, K, N)))
    matmul(dev, a, b, out[..., 1 : 1 + N])
    host = dev.to_host(out)
    assert (host[..., 1 : 1 + N] == K).all()
    assert host.sum() == 2 * M * N * K


def test_attention_heads(dev):
    """q k^T and its product with v on (B, T, 3, H, D), the output of one projection; the result
    goes into (B, T, H, D)."""
    B, T, H, D = 2, 4, 3, 5
    rng = np.random.default_rng(0)
    host = rng.standard_normal((B, T, 3, H, D))
    q, k, v = (dev.to_device(host)[:, :, j].swapaxes(1, 2) for j in range(3))
    scores = matmul(dev, q, k, tb=True)
    out = dev.empty((B, T, H, D))
    matmul(dev, scores, v, out.swapaxes(1, 2))
    expected = np.einsum("bthd,bshd,bshe->bthe", *(host[:, :, j] for j in range(3)))
    tolerance = 1e-12 if dev.dtype == np.float64 else 2e-5
    np.testing.assert_allclose(dev.to_host(out), expected, rtol=tolerance, atol=tolerance)


def test_broadcast_views_are_read_once(dev):
    """An operand with batch stride 0, made by broadcast_to, needs no copy."""
    shared = np.random.default_rng(0).standard_normal((M, K))
    a = dev.xp.broadcast_to(dev.to_device(shared), (E, M, K))
    b = dev.to_device(np.ones((E, K, N)))
    tolerance = 1e-12 if dev.dtype == np.float64 else 2e-5
    np.testing.assert_allclose(
        dev.to_host(matmul(dev, a, b)),
        np.broadcast_to(shared, (E, M, K)) @ np.ones((K, N)),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize("wrong", ["dtype", "gaps"])
def test_gpu_refuses_what_it_cannot_write(dev, wrong):
    if dev.kind != "cuda":
        pytest.skip("a rule of the GPU path")
    a, b = dev.zeros((M, K)), dev.zeros((K, N))
    out = dev.empty((M, 2 * N))[:, ::2] if wrong == "gaps" else dev.empty((M, N), "int64")
    with pytest.raises(ValueError, match="matmul needs"):
        matmul(dev, a, b, out)


@pytest.mark.parametrize("shapes", [((3, 5), (4, 6)), ((2, 3, 5), (3, 5, 4))])
def test_shapes_that_do_not_fit_raise(dev, shapes):
    with pytest.raises(ValueError, match="matmul|broadcast"):
        matmul(dev, *map(dev.zeros, shapes))


def test_tf32_is_asked_for_in_float32_only(monkeypatch):
    used, right = [], fakecupy.cuda.cublas.gemmStridedBatchedEx
    monkeypatch.setattr(
        fakecupy.cuda.cublas,
        "gemmStridedBatchedEx",
        lambda *args: used.append(args[-2]) or right(*args),
    )
    for dtype, tf32 in (("float32", False), ("float32", True), ("float64", True)):
        dev = fakecupy.fake_device(dtype)
        dev.tf32 = tf32
        matmul(dev, dev.zeros((M, K)), dev.zeros((K, N)))
    assert used == [COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F]


def test_products_are_recorded(dev):
    a, b = dev.zeros((E, K, M)), dev.zeros((K, N))
    dev.products = []
    matmul(dev, a, b, ta=True)
    assert dev.products == [((E, K, M), (K, N), True, False)]


@pytest.mark.parametrize("lead", [(), (E,), (E, F)])
@pytest.mark.parametrize("rows", [0, 1, 4000])
def test_sum_rows(dev, lead, rows):
    """Whole arrays, and some columns of wider ones, as the neurons of a part are."""
    host = np.random.default_rng(0).standard_normal((*lead, rows, 2 * N)).astype(dev.dtype)
    x = dev.to_device(host)
    rtol = 1e-12 if dev.dtype == np.float64 else 1e-5
    for part in (slice(None), slice(1, N)):
        expected = host[..., part].astype(float).sum(axis=-2)
        found = dev.to_host(sum_rows(dev, x[..., part]))
        assert found.dtype == dev.dtype
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=100 * rtol)
