"""Attention and rotary positions against definitions written out element by element, which errors
in forward leave."""

import math

import fakecupy
import numpy as np
import pytest

from tinygrok.audit.case import cpu_device
from tinygrok.ops import attention

HOST = cpu_device()


def by_definition(q, k, v, heads, queries):
    """Attention of one sequence, one query and one head at a time; queries: their positions."""
    y, D = np.zeros_like(q), q.shape[-1] // heads
    for h in range(heads):
        part = slice(h * D, (h + 1) * D)
        for row, t in enumerate(queries):
            scores = [math.fsum(q[row, part] * k[s, part]) / math.sqrt(D) for s in range(t + 1)]
            weights = np.exp(np.array(scores) - max(scores))
            y[row, part] = (weights / weights.sum()) @ v[: t + 1, part]
    return y


def turned_by_definition(x, size, base=10000.0):
    """Rotary positions by a 2 x 2 matrix for every pair; x (T, C)"""
    y = np.empty_like(x)
    for t in range(len(x)):
        for c in range(0, x.shape[1], 2):
            a = t * base ** (-(c % size) / size)
            y[t, c : c + 2] = (
                np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ x[t, c : c + 2]
            )
    return y


def tensors(lead=(), Tq=5, T=5, C=8, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((*lead, n, C)) for n in (Tq, T, T, Tq)]  # q, k, v, dy


def run(dev, q, k, v, dy, heads, queries):
    q, k, v, dy = (dev.to_device(x.copy()) for x in (q, k, v, dy))
    mask = attention.causal_mask_host(dev, queries, k.shape[-2])
    y, cache = attention.attention_forward(dev, q, k, v, heads, mask)
    grads = [dev.to_device(np.full(x.shape, np.nan)) for x in (q, k, v)]
    attention.attention_backward(dev, dy, cache, *grads)
    return [dev.to_host(x) for x in (y, *grads, cache[3])]


def tolerance(dev):
    return 2e-5 if dev.dtype == np.float32 else 1e-12


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("queries", [range(5), (1, 4), (0,)], ids=["all", "some", "first"])
@pytest.mark.parametrize("lead", [(3,), (2, 3)], ids=["alone", "ensemble"])
def test_attention(dev, lead, queries, heads):
    q, k, v, dy = tensors(lead, len(queries))
    y, *_, pattern = got = run(dev, q, k, v, dy, heads, queries)
    tol = tolerance(dev)
    for i in np.ndindex(lead):
        np.testing.assert_allclose(
            y[i], by_definition(q[i], k[i], v[i], heads, queries), rtol=tol, atol=tol
        )
        allowed = np.arange(5) <= np.array(queries)[:, None]
        assert (pattern[(slice(None), *i)][:, ~allowed] == 0).all()
        np.testing.assert_allclose(pattern[(slice(None), *i)].sum(axis=-1), 1, rtol=tol)
    for x, expected in zip(got, run(HOST, q, k, v, dy, heads, queries), strict=True):
        np.testing.assert_allclose(x, expected, rtol=tol, atol=tol)


def test_slices_of_one_array_and_given_buffers(dev):
    """q, k, v and their gradients side by side in one array, results in given buffers: the same
    numbers."""
    q, k, v, dy = tensors((3,))
    expected = run(dev, q, k, v, dy, 2, range(5))
    qkv = dev.to_device(np.concatenate([q, k, v], axis=-1))
    out, pattern, dqkv = dev.empty((3, 5, 8)), dev.empty((2, 3, 5, 5)), dev.empty(qkv.shape)

    def cut(a):
        return [a[..., 8 * j : 8 * j + 8] for j in range(3)]

    mask = attention.causal_mask_host(dev, range(5), 5)
    y, cache = attention.attention_forward(dev, *cut(qkv), 2, mask, out, pattern)
    assert y is out
    attention.attention_backward(dev, dev.to_device(dy), cache, *cut(dqkv))
    tol = tolerance(dev)
    for x, e in zip((y, *cut(dqkv), pattern), expected, strict=True):
        np.testing.assert_allclose(dev.to_host(x), e, rtol=tol, atol=tol)


@pytest.mark.parametrize("lead", [(3,), (2, 3)], ids=["alone", "ensemble"])
def test_rotary(dev, lead):
    x = np.random.default_rng(1).standard_normal((*lead, 6, 12))
    table = attention.rotary_table_host(dev, 6, 4, 3)
    y, cache = attention.rotary_forward(dev, dev.to_device(x), table)
    tol = tolerance(dev)
    for i in np.ndindex(lead):
        np.testing.assert_allclose(
            dev.to_host(y)[i], turned_by_definition(x[i], 4), rtol=tol, atol=tol
        )
    # The transpose of a rotation is its inverse.
    back = dev.to_host(attention.rotary_backward(dev, y, cache))
    np.testing.assert_allclose(back, x, rtol=tol, atol=tol)
    odd = slice(1, None, 2)
    some, _ = attention.rotary_forward(dev, dev.to_device(x[..., odd, :]), table.at(odd))
    np.testing.assert_allclose(dev.to_host(some), dev.to_host(y)[..., 1::2, :], rtol=tol, atol=tol)
    part = dev.to_device(np.concatenate([x, x], axis=-1))  # in place, on half of the channels
    attention.rotary_forward(dev, part[..., :12], table, part[..., :12])
    np.testing.assert_allclose(
        dev.to_host(part), np.concatenate([dev.to_host(y), x], axis=-1), rtol=tol, atol=tol
    )


@pytest.mark.parametrize("lead", [(3,), (2, 3)], ids=["alone", "ensemble"])
def test_causal_blocks_leave_out_zeros_only(dev, lead, monkeypatch):
    """Nothing above the diagonal blocks is computed, and nothing below it changes."""
    q, k, v, dy = tensors(lead, 7, 7)
    expected = run(dev, q, k, v, dy, 2, range(7))
    monkeypatch.setattr(attention, "BLOCK", 2)
    host = attention.causal_blocks(HOST, 7)
    assert host == [(0, 2), (2, 4), (4, 7)]
    assert attention.causal_blocks(fakecupy.fake_device("float32"), 7) == [(0, 7)]
    forward = attention.attention_forward
    monkeypatch.setattr(attention, "attention_forward", lambda *args: forward(*args, blocks=host))
    tol = tolerance(dev)
    for x, e in zip(run(dev, q, k, v, dy, 2, range(7)), expected, strict=True):
        np.testing.assert_allclose(x, e, rtol=tol, atol=tol)
    dev.products = []
    run(dev, q, k, v, dy, 2, range(7))
    work = sum(np.prod(a) * b[-2 if tb else -1] for a, b, _, tb in dev.products)
    assert work == 6 * np.prod(lead) * 8 * (2 * 2 + 2 * 4 + 3 * 7)


def test_scores_depend_on_distance_only():
    q, k = np.random.default_rng(2).standard_normal((2, 8))
    table = attention.rotary_table_host(HOST, 20, 8, 1)
    q, k = (attention.rotary_forward(HOST, np.tile(x, (20, 1)), table)[0] for x in (q, k))
    scores = q @ k.T
    for d in range(20):
        diagonal = np.diagonal(scores, -d)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-12)


def test_nothing_waits_for_the_device():
    dev = fakecupy.fake_device("float32")
    q, k, v, dy = (dev.to_device(x) for x in tensors((2, 3)))
    mask = attention.causal_mask_host(dev, range(5), 5)
    table = attention.rotary_table_host(dev, 5, 4, 2)
    with fakecupy.hot("float32"):
        _, turn = attention.rotary_forward(dev, q, table, q)
        _, cache = attention.attention_forward(dev, q, k, v, 2, mask)
        dq = dev.empty(q.shape)
        attention.attention_backward(dev, dy, cache, dq, dev.empty(k.shape), dev.empty(v.shape))
        attention.rotary_backward(dev, dq, turn, dq)


# -- planted errors of forward, which leaves its definition (of backward: test_audit_mutants.py) ---


def follows_definitions() -> bool:
    q, k, v, _ = tensors()
    mask = attention.causal_mask_host(HOST, range(5), 5)
    y = attention.attention_forward(HOST, q.copy(), k, v, 2, mask)[0]
    x = attention.rotary_forward(HOST, q, attention.rotary_table_host(HOST, 5, 4, 2))[0]
    return np.allclose(y, by_definition(q, k, v, 2, range(5))) and np.allclose(
        x, turned_by_definition(q, 4)
    )


def test_without_errors_they_hold():
    assert follows_definitions()


def _mask_off_by_one(right, dev, queries, keys):
    return right(dev, np.asarray(queries) + 1, keys)


def _mask_strict(right, dev, queries, keys):
    return right(dev, np.maximum(np.asarray(queries) - 1, 0), keys)


def _no_scale(right, dev, q, k, v, heads, *rest):
    q *= math.sqrt(q.shape[-1] // heads)
    return right(dev, q, k, v, heads, *rest)


def _scale_of_all_heads(right, dev, q, k, v, heads, *rest):
    q *= 1 / math.sqrt(heads)
    return right(dev, q, k, v, heads, *rest)


def _heads_transposed(right, dev, x, H):
    """Channel c belongs to head c mod H in place of c // D"""
    return np.moveaxis(x.reshape(*x.shape[:-1], -1, H), -1, 0)


def _other_pairs(right, dev, x, table, sign, out):
    """Pairs (c, c + D/2) in place of neighbours"""
    turned = right(dev, x, table, sign, None)
    return np.concatenate([turned[..., 0::2], turned[..., 1::2]], axis=-1)


def _turned_the_other_way(right, dev, x, table, sign, out):
    return right(dev, x, table, -sign, out)


def _one_frequency_late(right, dev, positions, size, copies, base=10000.0):
    return right(dev, positions + 1, size, copies, base).at(slice(1, None))


FORWARD = [
    ("causal_mask_host", _mask_off_by_one),
    ("causal_mask_host", _mask_strict),
    ("attention_forward", _no_scale),
    ("attention_forward", _scale_of_all_heads),
    ("_split", _heads_transposed),
    ("_rotate", _other_pairs),
    ("_rotate", _turned_the_other_way),
    ("rotary_table_host", _one_frequency_late),
]


@pytest.mark.parametrize(
    ("name", "wrong"), FORWARD, ids=[w.__name__.strip("_") for _, w in FORWARD]
)
def test_wrong_forward_is_caught(monkeypatch, name, wrong):
    right = getattr(attention, name)
    monkeypatch.setattr(attention, name, lambda *args: wrong(right, *args))
    assert not follows_definitions()
