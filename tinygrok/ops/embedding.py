"""Embeddings: rows of tables picked by index, and sums of them, without one-hot products.

A two-layer network on concatenated one-hot inputs e(n_1), ..., e(n_S) computes U^(1) e(n_1) + ... +
U^(S) e(n_S) in its first layer: S rows gathered and added. The gradient of row v of table s is the
sum of the cotangent rows b with n_s(b) = v; RowIndex lists those rows once, so backward is a sum
over contiguous segments, with no atomics and no add.at."""

import numpy as np

from ..engine import kernels
from ..engine.device import Array, Device


class RowIndex:
    """Which row of each of S tables every input takes, and the inputs grouped by row.

    index    (S, B), or (E, S, B) when members see different inputs; host integers in [0, P)
    order    argsort of index along B;  starts (.., S, P+1): inputs of row v are order[starts[v]:starts[v+1]]

    Sort the inputs by n_1 where their order is free: the first table is then summed without a
    gather.
    Raises IndexError for an index outside the table (a GPU would read another row silently).
    """

    def __init__(self, dev: Device, index: np.ndarray, rows: int):
        index = np.asarray(index)
        if index.dtype.kind not in "iu" or index.ndim not in (2, 3):
            raise IndexError(
                f"index must hold integers of shape (S, B) or (E, S, B), not {index.dtype} {index.shape}"
            )
        if index.size and (index.min() < 0 or index.max() >= rows):
            raise IndexError(
                f"index runs from {index.min()} to {index.max()}, but the table has rows 0..{rows - 1}"
            )
        self.rows, self.host = rows, index
        order = np.argsort(index, axis=-1, kind="stable")
        grouped = np.take_along_axis(index, order, axis=-1)
        edges = np.arange(rows + 1)
        starts = np.stack([np.searchsorted(g, edges) for g in grouped.reshape(-1, index.shape[-1])])
        starts = starts.reshape(*index.shape[:-1], rows + 1)
        if dev.kind == "cuda":
            self.index, self.order, self.starts = (
                dev.to_device(a.astype(np.int32)) for a in (index, order, starts)
            )
            return
        shape = -1, *index.shape[-2:]
        self.groups = [
            [_HostGroups(n, o, t.tolist()) for n, o, t in zip(*tables, strict=True)]
            for tables in zip(
                index.reshape(shape),
                order.reshape(shape),
                starts.reshape(-1, *starts.shape[-2:]),
                strict=True,
            )
        ]

    def __len__(self) -> int:
        return self.host.shape[-1]


class _HostGroups:
    """One table's inputs grouped for NumPy, in the form that takes the fewest calls; few calls let
    threads run freely.

    segments   order lists the inputs row by row; [(row, start, stop)]: a row's inputs stand side by side. Best where
               many inputs share few rows, and free of a gather where the inputs are sorted (order
               None).
    ranks      order lists the first input of every row, then every second one, ...: [(start, count)]; rows that have
               most inputs come first, so that rank k is added to the head of rank 0. Best where
               many rows share few.
    """

    def __init__(self, index: np.ndarray, order: np.ndarray, starts: list[int]):
        counts = np.diff(starts)
        self.rows = np.flatnonzero(counts)
        if len(index) and counts.max() < len(self.rows):
            self.rows = np.argsort(-counts, kind="stable")[: len(self.rows)]
            place = np.empty(len(counts), dtype=int)
            place[self.rows] = np.arange(len(self.rows))
            rank = np.arange(len(order)) - np.asarray(starts)[index[order]]
            self.order = order[np.lexsort((place[index[order]], rank))]
            sizes = np.bincount(rank)
            self.ranks, self.segments = (
                list(zip((np.cumsum(sizes) - sizes).tolist(), sizes.tolist(), strict=True)),
                None,
            )
        else:
            self.order = None if (index[1:] >= index[:-1]).all() else order
            self.ranks, self.segments = (
                None,
                [(v, starts[v], starts[v + 1]) for v in self.rows.tolist()],
            )


def embedding_forward(dev: Device, u: Array, rows: RowIndex, out: Array | None = None):
    """h_b = sum_s u[s, n_s(b)]        u (..., S, P, N)   n (S, B) or (E, S, B)   h (..., B, N)

    S = 1 is an embedding, S = 2 the pair embedding W1[a] + W2[b] of one-hot inputs.
    Source: Grokking modular polynomials, section 2 (first layer).
    """
    S, P, N = u.shape[-3:]
    if out is None:
        out = dev.empty((*u.shape[:-3], len(rows), N))
    if dev.kind == "cuda":
        stride = S * len(rows) if rows.index.ndim == 3 else 0
        kernels.gather_sum(dev, u, rows.index, S, P, N, len(rows), stride, out)
    elif rows.host.ndim == 3:
        for e, index in enumerate(rows.host):
            _gather_host(dev, u[e], index, rows.groups[e], out[e])
    else:
        _gather_host(dev, u, rows.host, rows.groups[0], out)
    return out, (rows,)


def _gather_host(dev: Device, u: Array, index: np.ndarray, groups: list, h: Array) -> None:
    u[..., -1, :, :].take(
        index[-1], axis=-2, out=h, mode="clip"
    )  # "clip" fills out without a buffer
    for s, group in enumerate(groups[:-1]):
        if (
            group and group.segments and group.order is None
        ):  # sorted inputs: a row goes to a run of them
            for v, start, stop in group.segments:
                h[..., start:stop, :] += u[..., s, v : v + 1, :]
        else:
            more = dev.workspace.get("embedding.gathered", h.shape)
            h += u[..., s, :, :].take(index[s], axis=-2, out=more, mode="clip")


def embedding_backward(
    dev: Device, dh: Array, cache: tuple, du: Array, accumulate: bool = False
) -> None:
    """du[s, v] = sum over b with n_s(b) = v of dh_b        dh (..., B, N)   du (..., S, P, N)

    Writes du, or adds to it with accumulate (a further shard of the batch).
    """
    (rows,) = cache
    S, P, N = du.shape[-3:]
    if dev.kind == "cuda":
        strides = (S * len(rows), S * (P + 1)) if rows.order.ndim == 3 else (0, 0)
        kernels.segment_sum(
            dev, dh, rows.order, rows.starts, S, P, N, len(rows), *strides, int(accumulate), du
        )
        return
    if not accumulate:
        du.fill(0)
    if rows.host.ndim == 3:
        for e, groups in enumerate(rows.groups):
            _add_segments_host(dev, dh[e], groups, du[e])
    else:
        _add_segments_host(dev, dh, rows.groups[0], du)


def _add_segments_host(dev: Device, dh: Array, groups: list, du: Array) -> None:
    for s, group in enumerate(groups):
        grouped = dh
        if group.order is not None:
            grouped = dev.workspace.get("embedding.grouped", dh.shape)
            dh.take(group.order, axis=-2, out=grouped, mode="clip")
        if group.ranks:
            for start, count in group.ranks[1:]:
                grouped[..., :count, :] += grouped[..., start : start + count, :]
            du[..., s, group.rows, :] += grouped[..., : len(group.rows), :]
        else:
            for v, start, stop in group.segments:
                du[..., s, v, :] += dev.xp.add.reduce(grouped[..., start:stop, :], axis=-2)
