"""The fast operations against examples/_reference.py: every device, with members, every option."""

import inspect
from pathlib import Path

import _reference as reference
import numpy as np
import pytest

from tinygrok.ops import attention, conv, embedding, norm

LEADS = pytest.mark.parametrize("lead", [(), (3,)], ids=["alone", "ensemble"])


@pytest.fixture
def draw(dev):
    """Seeded arrays on the device."""
    rng = np.random.default_rng(11)
    return lambda *shape: dev.to_device(rng.standard_normal(shape))


def equal(dev, got, expected):
    tolerance = 2e-5 if dev.dtype == np.float32 else 1e-12
    for i, (x, y) in enumerate(zip(got, expected, strict=True)):
        x = dev.to_host(x)
        y = dev.to_host(y)
        assert x.shape == y.shape, f"output {i}"
        assert x.dtype == y.dtype == dev.dtype, f"output {i}"
        atol = tolerance * max(1, np.abs(y).max())
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=atol, err_msg=f"output {i}")


def unset(dev, *arrays):
    """Arrays for gradients whose old contents must not matter."""
    return [dev.to_device(np.full(x.shape, np.nan)) for x in arrays]


def test_every_reference_stands_for_a_fast_form():
    """Each function of _reference.py has its twin, names of arguments included, and is compared."""
    tests = Path(__file__).read_text()
    for name, plain in inspect.getmembers(reference, inspect.isfunction):
        modules = [m for m in (attention, conv, embedding, norm) if hasattr(m, name)]
        assert len(modules) == 1, name
        fast = list(inspect.signature(getattr(modules[0], name)).parameters)
        assert set(inspect.signature(plain).parameters) <= set(fast), name
        assert f"reference.{name}(dev" in tests, f"{name} is compared nowhere"


@pytest.mark.parametrize("batch", [(2,), (3, 2)], ids=["alone", "ensemble"])
@pytest.mark.parametrize("mask", ["none", "causal", "some queries"])
def test_attention(dev, draw, batch, mask):
    T, C = 7, 6
    queries = (1, 4, 6) if mask == "some queries" else range(T)
    q, dy = draw(*batch, len(queries), C), draw(*batch, len(queries), C)
    k, v = draw(*batch, T, C), draw(*batch, T, C)
    table = None if mask == "none" else attention.causal_mask_host(dev, queries, T)
    expected, plain = reference.attention_forward(dev, q, k, v, 3, table)
    y, cache = attention.attention_forward(dev, q.copy(), k, v, 3, table)
    gradients = unset(dev, q, k, v)
    attention.attention_backward(dev, dy, cache, *gradients)
    equal(dev, [y, *gradients], [expected, *reference.attention_backward(dev, dy, plain)])


@pytest.mark.parametrize("T", [1, 4, 7, 9])
def test_attention_in_causal_blocks(dev, draw, T, monkeypatch):
    """Blocks of uneven lengths, forced on GPUs too, where one block is faster."""
    monkeypatch.setattr(attention, "BLOCK", 2)
    q, k, v, dy = (draw(2, T, 6) for _ in range(4))
    mask = attention.causal_mask_host(dev, range(T), T)
    blocks = [(a, min(a + 2, T)) for a in range(0, T, 2)]
    if dev.kind == "cpu":
        assert len(attention.causal_blocks(dev, T)) == max(T // 2, 1)
        blocks = attention.causal_blocks(dev, T)
    expected, plain = reference.attention_forward(dev, q, k, v, 2, mask)
    y, cache = attention.attention_forward(dev, q.copy(), k, v, 2, mask, blocks=blocks)
    gradients = unset(dev, q, k, v)
    attention.attention_backward(dev, dy, cache, *gradients)
    equal(dev, [y, *gradients], [expected, *reference.attention_backward(dev, dy, plain)])


@LEADS
def test_rotary(dev, draw, lead):
    x, dy = draw(*lead, 2, 5, 12), draw(*lead, 2, 5, 12)
    for copies in (3, 4):  # the table may be made for more heads than there are
        table = attention.rotary_table_host(dev, 5, 4, copies)
        expected, plain = reference.rotary_forward(dev, x, table)
        y, cache = attention.rotary_forward(dev, x, table)
        dx = attention.rotary_backward(dev, dy, cache)
        equal(dev, [y, dx], [expected, reference.rotary_backward(dev, dy, plain)])


@LEADS
@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize(("rows", "terms"), [(5, 2), (40, 2), (5, 1), (40, 3)])
@pytest.mark.parametrize("ordered", [False, True], ids=["any order", "sorted"])
def test_embedding(dev, draw, lead, own, rows, terms, ordered):
    """Many inputs of few rows, and few of many; inputs shared by the members, or their own."""
    u, dh = draw(*lead, terms, rows, 4), draw(*lead, 12, 4)
    index = np.random.default_rng(1).integers(0, rows, (*(lead if own else ()), terms, 12))
    if ordered:
        index.sort(axis=-1)
    found = embedding.RowIndex(dev, index, rows)
    expected, plain = reference.embedding_forward(dev, u, found)
    h, cache = embedding.embedding_forward(dev, u, found)
    (du,) = unset(dev, u)
    embedding.embedding_backward(dev, dh, cache, du)
    equal(dev, [h, du], [expected, reference.embedding_backward(dev, dh, plain)])


@pytest.mark.parametrize(("stride", "pad"), [(1, 0), (1, 1), (2, 0), (2, 1), (3, 2)])
@pytest.mark.parametrize(("size", "kernel"), [((5, 7), 3), ((6, 6), 2), ((8, 5), 1)])
@pytest.mark.parametrize("images", ["together", "one by one"])
def test_conv(dev, draw, size, kernel, stride, pad, images, monkeypatch):
    if images == "one by one":
        monkeypatch.setattr(conv, "COLUMN_BYTES", {"cpu": 1, "cuda": 1})
    x, w, b = draw(3, *size, 2), draw(kernel, kernel, 2, 4), draw(4)
    expected, plain = reference.conv_forward(dev, x, w, b, stride, pad)
    y, cache = conv.conv_forward(dev, x, w, b, stride, pad)
    dy = draw(*y.shape)
    dw, db = unset(dev, w, b)
    dx = conv.conv_backward(dev, dy, cache, dw, db)
    equal(dev, [y, dx, dw, db], [expected, *reference.conv_backward(dev, dy, plain)])


@LEADS
@pytest.mark.parametrize("mode", ["train", "weighted", "eval"])
def test_batchnorm(dev, draw, lead, mode):
    x, dy = draw(*lead, 6, 4), draw(*lead, 6, 4)
    gain, shift, mean, log_var = (draw(*lead, 4) for _ in range(4))
    var = dev.xp.exp(log_var)
    weight = None
    if mode == "weighted":
        given = np.random.default_rng(2).choice([0.0, 1.0, 2.5], (*lead, 6)) + np.eye(6)[1]
        weight = dev.to_device(given)
    options = (mode != "eval", weight, 0.3, 1e-3)
    before = (mean.copy(), var.copy())
    expected, plain, moved = reference.batchnorm_forward(dev, x, gain, shift, *before, *options)
    y, cache = norm.batchnorm_forward(dev, x, gain, shift, mean, var, *options)
    dgain, dshift = unset(dev, gain, shift)
    dx = norm.batchnorm_backward(dev, dy, cache, dgain, dshift)
    gradients = reference.batchnorm_backward(dev, dy, plain)
    equal(dev, [y, mean, var, dx, dgain, dshift], [expected, *moved, *gradients])


@LEADS
@pytest.mark.parametrize("with_shift", [True, False], ids=["shift", "no shift"])
def test_layernorm(dev, draw, lead, with_shift):
    x, dy = draw(*lead, 6, 5), draw(*lead, 6, 5)
    gain, shift = draw(*lead, 5), draw(*lead, 5) if with_shift else None
    expected, plain = reference.layernorm_forward(dev, x, gain, shift, 1e-3)
    y, cache = norm.layernorm_forward(dev, x, gain, shift, 1e-3)
    dgain, dshift = unset(dev, gain, gain)
    dx = norm.layernorm_backward(dev, dy, cache, dgain, dshift)
    gradients = reference.layernorm_backward(dev, dy, plain)
    equal(dev, [y, dx, dgain, dshift], [expected, *gradients])
