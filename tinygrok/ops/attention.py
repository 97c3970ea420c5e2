"""Multi-head attention, causal or not, and rotary positions.

Heads are consecutive slices of D = C/H channels. Inside, the head axis comes first, (H, ..., B, T,
D), a view of (..., B, T, C): one matrix product per head over the whole batch on a GPU, no copy on
either device. Functions named *_host run on the host and hand over device arrays."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..engine import kernels, row_kernels
from ..engine.device import Array, Device
from ..engine.gemm import matmul

WHOLE = ((0, None),)  # one block: all queries, all keys
BLOCK = 64  # positions, at least, in a block of causal attention


class Rotary(NamedTuple):
    """cos and sin of the angles (T, N/2) by which N/2 pairs of channels turn at T positions.

    turn is cos + i sin where NumPy multiplies complex numbers, else None."""

    cos: Array
    sin: Array
    turn: Array | None

    def at(self, rows) -> "Rotary":
        """The angles at some positions: a slice, or a device array of integers."""
        turn = None if self.turn is None else self.turn[rows]
        return Rotary(self.cos[rows], self.sin[rows], turn)


def rotary_table_host(dev: Device, positions: int, size: int, copies: int, base=10000.0) -> Rotary:
    """Angles t f_j, f_j = base^(-2j/D), at t = 0..positions-1 for heads of D = `size` channels.

    copies: heads side by side. Source: Su et al., arXiv 2104.09864, equation 15.
    """
    frequencies = base ** (-np.arange(0, size, 2) / size)
    angles = np.arange(positions)[:, None] * frequencies
    angles = np.tile(angles, copies)
    cos = dev.to_device(np.cos(angles))
    sin = dev.to_device(np.sin(angles))
    complex_products = dev.kind == "cpu" and dev.dtype.kind == "f"
    return Rotary(cos, sin, cos + 1j * sin if complex_products else None)


def _rotate(dev: Device, x: Array, table: Rotary, sign: float, out) -> Array:
    """The pairs (u, v) of channels turned by sign times the angles of the table."""
    y = dev.empty(x.shape) if out is None else out
    half = x.shape[-1] // 2
    if table.turn is not None:  # (u, v) is the complex number u + iv in memory: one product
        turn = table.turn[:, :half]
        factor = turn if sign > 0 else turn.conj()
        dev.xp.multiply(x.view(turn.dtype), factor, out=y.view(turn.dtype))
        return y
    cos = table.cos[:, :half]
    sin = table.sin[:, :half]
    u = x[..., 0::2]
    v = x[..., 1::2]
    yu = y[..., 0::2]
    yv = y[..., 1::2]
    kernels.rotate(dev, u, v, cos, sin, sign, yu, yv)
    return y


def rotary_forward(dev: Device, x: Array, table: Rotary, out=None):
    """y_2j = x_2j cos a - x_2j+1 sin a        y_2j+1 = x_2j+1 cos a + x_2j sin a

    Pairs of neighbouring channels turn by the angle a = t f_j of their position t and index j in
    the head. x (..., T, N)   y (..., T, N); out may be x.
    Source: Su et al., arXiv 2104.09864 (interleaved pairs, as rotary_embedding_torch).
    """
    return _rotate(dev, x, table, 1.0, out), (table,)


def rotary_backward(dev: Device, dy: Array, cache: tuple, dx=None):
    """dx = dy turned back, by the angle -a        (a rotation's transpose; dx may be dy)"""
    (table,) = cache
    return _rotate(dev, dy, table, -1.0, dx)


def causal_mask_host(dev: Device, queries, keys: int) -> Array:
    """(Tq, T): 0 where key s <= query position t, -inf where s > t."""
    seen = np.arange(keys) <= np.asarray(queries)[:, None]
    return dev.to_device(np.where(seen, 0.0, -np.inf))


def _split(dev: Device, x: Array, H: int) -> Array:
    """(..., B, T, C) -> (H, ..., B, T, D), a view"""
    heads_inside = x.reshape(*x.shape[:-1], H, -1)
    return heads_inside.transpose(x.ndim - 1, *range(x.ndim - 1), x.ndim)


def _at(x: Array, positions: slice) -> Array:
    return x[..., positions, :]


def causal_blocks(dev: Device, T: int) -> list[tuple[int, int]]:
    """[(a, b)]: runs of positions, about BLOCK long.

    Queries a..b-1 see no key from b on; keys a..b-1 are seen by no query before a. On a GPU one
    run: launches cost more than what lies above the diagonal."""
    count = max(T // BLOCK, 1) if dev.kind == "cpu" else 1
    edges = [T * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def attention_forward(
    dev: Device,
    q: Array,
    k: Array,
    v: Array,
    heads: int,
    mask=None,
    out=None,
    pattern=None,
    edit: Callable[[Array], None] | None = None,
    blocks=WHOLE,
    scale: float | None = None,
):
    """y = A v,  A = softmax(scale q k^T + mask), head by head;  scale = 1/sqrt D unless given

    q (..., B, Tq, C)   k, v (..., B, T, C)   y (..., B, Tq, C)   A (H, ..., B, Tq, T)
    mask (Tq, T); None: every query sees every key.
    q, k, v may be slices of one array; q is overwritten by scale q. out, pattern: for y and A.
    edit(A) may change A, as (..., B, H, Tq, T), in place before the product; backward does not know
    of that.
    blocks: causal_blocks leaves out what lies above the diagonal of a causal mask, here and in
    backward.
    Source: Vaswani et al., arXiv 1706.03762.
    """
    y = dev.empty(q.shape) if out is None else out
    qh, kh, vh, yh = (_split(dev, x, heads) for x in (q, k, v, y))
    scale = 1 / math.sqrt(qh.shape[-1]) if scale is None else scale
    q *= scale
    shape = (*qh.shape[:-1], kh.shape[-2])
    att = dev.empty(shape) if pattern is None else pattern
    for a, b in blocks:
        queries = slice(a, b)
        keys = slice(b)  # those that they see
        scores = att[..., queries, keys]
        matmul(dev, _at(qh, queries), _at(kh, keys), scores, tb=True)
        masked = None if mask is None else mask[queries, keys]
        row_kernels.softmax(dev, scores, masked, scores)
        if b is not None:
            att[..., queries, b:] = 0.0
    nonzero = blocks
    if edit is not None:
        edit(dev.xp.moveaxis(att, 0, -3))
        nonzero = WHOLE  # A may have entries above the diagonal now
    for a, b in nonzero:
        queries = slice(a, b)
        keys = slice(b)
        matmul(dev, att[..., queries, keys], _at(vh, keys), _at(yh, queries))
    return y, (q, k, v, att, y, blocks, scale)


def attention_backward(dev: Device, dy: Array, cache: tuple, dq: Array, dk: Array, dv: Array):
    """dv = A^T dy        dA = dy v^T        dS_ts = A_ts (dA_ts - sum_r A_tr dA_tr)

    dq = scale dS k        dk = scale dS^T q, with A = softmax(S), S = scale q k^T + mask:
    A_tr has the derivative A_tr ([r = s] - A_ts) by S_ts. The sum over the keys r of a query t
    needs no dA: sum_r A_tr <dy_t, v_r> = <dy_t, sum_r A_tr v_r> = <dy_t, y_t>, products over the
    channels of the head. Writes dq, dk, dv, which may be slices of one array.
    """
    q, k, v, att, y, blocks, scale = cache  # this q is scale q already
    heads = att.shape[0]
    arrays = (q, k, v, y, dy, dq, dk, dv)
    qh, kh, vh, yh, dyh, dqh, dkh, dvh = (_split(dev, x, heads) for x in arrays)
    dscores = dev.workspace.get("attention.scores", att.shape)
    for a, b in blocks:
        queries = slice(a, b)
        keys = slice(b)
        ds = dscores[..., queries, keys]
        p = att[..., queries, keys]
        matmul(dev, _at(dyh, queries), _at(vh, keys), ds, tb=True)  # dA
        row_kernels.softmax_backward(dev, _at(dyh, queries), _at(yh, queries), p, ds, ds)
        matmul(dev, ds, _at(kh, keys), _at(dqh, queries))
    dq *= scale
    for a, b in blocks:
        keys = slice(a, b)
        queries = slice(a, None)  # those that see them
        matmul(dev, att[..., queries, keys], _at(dyh, queries), _at(dvh, keys), ta=True)
        matmul(dev, dscores[..., queries, keys], _at(qh, queries), _at(dkh, keys), ta=True)


# -- self-attention of q, k, v side by side, without a mask, with its tangent ----------------------


def self_attention_forward(dev: Device, x: Array, heads: int):
    """y = attention of x = [q | k | v], every query sees every key

    x (..., B, T, 3C)   y (..., B, T, C)"""
    q, k, v = dev.xp.split(x, 3, axis=-1)
    return attention_forward(dev, q.copy(), k, v, heads)


def self_attention_backward(dev: Device, dy: Array, cache: tuple) -> Array:
    """dx = [dq | dk | dv], those of attention_backward"""
    dx = dev.empty((*dy.shape[:-1], 3 * dy.shape[-1]))
    attention_backward(dev, dy, cache, *dev.xp.split(dx, 3, axis=-1))
    return dx


def _thirds(dev: Device, x: Array, H: int) -> list[Array]:
    """x (..., B, T, 3C) = [q | k | v] -> views (H, ..., B, T, D) of all three"""
    return [_split(dev, third, H) for third in dev.xp.split(x, 3, axis=-1)]


def _centred(att: Array, z: Array) -> Array:
    """z_ts - sum_r A_tr z_tr: A times it is the derivative of the softmax A, applied to z."""
    return z - (att * z).sum(axis=-1, keepdims=True)


def self_attention_tangent(dev: Device, xdot: Array, cache: tuple):
    """ydot = Adot v + A vdot,  Adot = A c,  c = Sdot - sum_r A_tr Sdot_tr

    Sdot = scale (qdot k^T + q kdot^T), head by head."""
    q, k, v, att, y, _, scale = cache  # this q is scale q
    H = len(att)
    qh, kh, vh = (_split(dev, a, H) for a in (q, k, v))
    qdot, kdot, vdot = _thirds(dev, xdot, H)
    sdot = scale * matmul(dev, qdot, kh, tb=True) + matmul(dev, qh, kdot, tb=True)
    c = _centred(att, sdot)
    ydot = dev.empty(y.shape)
    _split(dev, ydot, H)[...] = matmul(dev, att * c, vh) + matmul(dev, att, vdot)
    return ydot, (xdot, c)


def self_attention_pair(dev: Device, xbar: Array, lam: Array, cache: tuple, tangent: tuple):
    """lam <- backward(lam)        xbar <- backward(xbar) + the derivative of backward(lam) by xdot

    since ydot = F'(x) xdot, and <lam, F'(x + dx) xdot> changes as <F'(x + xdot)^T lam, dx> does.
    In backward(lam) at x the scores have the gradient dS = A m, m = dA - sum_r A_tr dA_tr, dA =
    lam v^T. Along xdot, with Adot = A c and d dA = lam vdot^T,

        d m  = (d dA - sum_r A_tr d dA_tr) - sum_r A_tr c_tr dA_tr
        d dS = A c m + A d m = A (z - sum_r A_tr z_tr),  z = lam vdot^T + c m

    for sum_r A_tr c_tr = 0 makes sum_r A c dA of sum_r A c m. Then, by the product rule,
    d dq = scale (d dS k + dS kdot)      d dk = scale (d dS^T q + dS^T qdot)      d dv = Adot^T lam
    """
    q, k, v, att, _, _, scale = cache  # this q is scale q
    xdot, c = tangent
    H = len(att)
    new_xbar = self_attention_backward(dev, xbar, cache)
    new_lam = self_attention_backward(dev, lam, cache)
    qh, kh, vh, lamh = (_split(dev, a, H) for a in (q, k, v, lam))
    qdot, kdot, vdot = _thirds(dev, xdot, H)
    dq, dk, dv = _thirds(dev, new_xbar, H)
    m = _centred(att, matmul(dev, lamh, vh, tb=True))
    z = matmul(dev, lamh, vdot, tb=True) + c * m
    ds = att * m
    dds = att * _centred(att, z)
    dq += scale * (matmul(dev, dds, kh) + matmul(dev, ds, kdot))
    dk += matmul(dev, dds, qh, ta=True) + scale * matmul(dev, ds, qdot, ta=True)
    dv += matmul(dev, att * c, lamh, ta=True)
    return new_xbar, new_lam
