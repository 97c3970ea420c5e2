"""Causal multi-head attention, and rotary positions.

Heads are consecutive slices of D = C/H channels. Inside, the head axis comes first, (H, ..., B, T,
D), a view of (..., B, T, C): one matrix product per head over the whole batch on a GPU, no copy on
either device."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..engine import kernels
from ..engine.device import Array, Device
from ..engine.gemm import matmul
from .loss import softmax_forward

WHOLE = ((0, None),)  # one block: all queries, all keys
BLOCK = 64  # positions, at least, in a block of causal attention


class Rotary(NamedTuple):
    """cos and sin of the angles (T, N/2) by which the N/2 pairs of N channels are turned at T
    positions; turn is cos + i sin where NumPy multiplies complex numbers, else None."""

    cos: Array
    sin: Array
    turn: Array | None

    def at(self, rows) -> "Rotary":
        """The angles at some positions: a slice, or a device array of integers."""
        return Rotary(*(None if a is None else a[rows] for a in self))


def rotary_table_host(
    dev: Device, positions: int, size: int, copies: int, base: float = 10000.0
) -> Rotary:
    """Angles t f_j, f_j = base^(-2j/D), at t = 0..positions-1 for heads of D = `size` channels,
    `copies` heads side by side.

    Source: Su et al., arXiv 2104.09864, equation 15.
    """
    angles = np.arange(positions)[:, None] * base ** (-np.arange(0, size, 2) / size)
    angles = np.tile(angles, copies)
    cos, sin = dev.to_device(np.cos(angles)), dev.to_device(np.sin(angles))
    return Rotary(cos, sin, cos + 1j * sin if dev.kind == "cpu" and dev.dtype.kind == "f" else None)


def _rotate(dev: Device, x: Array, table: Rotary, sign: float, out: Array | None) -> Array:
    out = dev.empty(x.shape) if out is None else out
    cos, sin, turn = (None if a is None else a[:, : x.shape[-1] // 2] for a in table)
    if turn is None:
        pairs = x[..., 0::2], x[..., 1::2], cos, sin, sign, out[..., 0::2], out[..., 1::2]
        kernels.rotate(dev, *pairs) if dev.kind == "cuda" else kernels.rotate.numpy(*pairs)
    else:  # the pairs (u, v) are the complex numbers u + iv in memory: one product
        dev.xp.multiply(
            x.view(turn.dtype), turn if sign > 0 else turn.conj(), out=out.view(turn.dtype)
        )
    return out


def rotary_forward(dev: Device, x: Array, table: Rotary, out: Array | None = None):
    """Pairs of neighbouring channels turn by the angle a = t f_j of their position t and index j in
    the head:

    y_2j = x_2j cos a - x_2j+1 sin a        y_2j+1 = x_2j+1 cos a + x_2j sin a        x (..., T, N)   y (..., T, N)

    out may be x. Source: Su et al., arXiv 2104.09864, section 3.4 (interleaved pairs, as
    rotary_embedding_torch)."""
    return _rotate(dev, x, table, 1.0, out), (table,)


def rotary_backward(dev: Device, dy: Array, cache: tuple, dx: Array | None = None):
    """dx = dy turned back, by the angle -a        (dx may be dy)"""
    return _rotate(dev, dy, cache[0], -1.0, dx)


def causal_mask_host(dev: Device, queries, keys: int) -> Array:
    """(Tq, T): 0 where key s <= query position t, -inf where s > t."""
    return dev.to_device(np.where(np.arange(keys) <= np.asarray(queries)[:, None], 0.0, -np.inf))


def _split(dev: Device, x: Array, H: int) -> Array:
    """(..., B, T, C) -> (H, ..., B, T, D), a view"""
    return dev.xp.moveaxis(x.reshape(*x.shape[:-1], H, -1), -2, 0)


def causal_blocks(dev: Device, T: int) -> list[tuple[int, int]]:
    """[(a, b)]: runs of positions. Queries a..b-1 see no key from b on; keys a..b-1 are seen by no
    query before a. On a GPU one run: launches cost more than what lies above the diagonal."""
    count = max(T // BLOCK, 1) if dev.kind == "cpu" else 1
    return list(pairwise(T * i // count for i in range(count + 1)))


def attention_forward(
    dev: Device,
    q: Array,
    k: Array,
    v: Array,
    heads: int,
    mask=None,
    out=None,
    pattern=None,
    edit=None,
    blocks=WHOLE,
):
    """A = softmax(q k^T / sqrt D + mask),  y = A v, head by head

    q (..., B, Tq, C)   k, v (..., B, T, C)   mask (Tq, T), None: every query sees every key   y (..., B, Tq, C)
    A (H, ..., B, Tq, T)        q, k, v may be slices of one array. q is overwritten by q / sqrt D.
    edit(A) may change A in place before the product; backward does not know of that.
    blocks: causal_blocks leaves out what lies above the diagonal of a causal mask, here and in
    backward.
    Source: Vaswani et al., arXiv 1706.03762, section 3.2.
    """
    out = dev.empty(q.shape) if out is None else out
    qh, kh, vh, yh = (_split(dev, x, heads) for x in (q, k, v, out))
    q *= 1 / math.sqrt(qh.shape[-1])
    att = dev.empty((*qh.shape[:-1], kh.shape[-2])) if pattern is None else pattern
    for a, b in blocks:
        scores = matmul(dev, qh[..., a:b, :], kh[..., :b, :], att[..., a:b, :b], tb=True)
        if mask is not None:
            scores += mask[a:b, :b]
        softmax_forward(dev, scores, out=scores)
        if b is not None:
            att[..., a:b, b:] = 0.0
    if edit is not None:
        edit(att)
    for a, b in blocks if edit is None else WHOLE:
        matmul(dev, att[..., a:b, :b], vh[..., :b, :], yh[..., a:b, :])
    return out, (q, k, v, att, out, blocks)


def attention_backward(dev: Device, dy: Array, cache: tuple, dq: Array, dk: Array, dv: Array):
    """dv = A^T dy      dA = dy v^T      dS = A (dA - <dA, A>), <dA, A> = <dy, y> summed over keys or channels of a head

    dq = dS k / sqrt D        dk = dS^T q / sqrt D        Writes dq, dk, dv, which may be slices of one array.
    """
    q, k, v, att, y, blocks = cache
    H = att.shape[0]
    qh, kh, vh, dyh, dqh, dkh, dvh = (_split(dev, x, H) for x in (q, k, v, dy, dq, dk, dv))
    product = dev.xp.multiply(dy, y, out=dev.workspace.get("attention.product", y.shape))
    inner = _split(dev, product, H).sum(axis=-1, keepdims=True)
    scores = dev.workspace.get("attention.scores", att.shape)
    for a, b in blocks:
        ds = matmul(dev, dyh[..., a:b, :], vh[..., :b, :], scores[..., a:b, :b], tb=True)
        ds -= inner[..., a:b, :]
        ds *= att[..., a:b, :b]
        matmul(dev, ds, kh[..., :b, :], dqh[..., a:b, :])
    dq *= 1 / math.sqrt(qh.shape[-1])
    for a, b in blocks:
        matmul(dev, att[..., a:, a:b], dyh[..., a:, :], dvh[..., a:b, :], ta=True)
        matmul(
            dev, scores[..., a:, a:b], qh[..., a:, :], dkh[..., a:b, :], ta=True
        )  # qh carries 1/sqrt D already
