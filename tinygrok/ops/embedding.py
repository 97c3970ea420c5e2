"""Embeddings: rows of tables picked by index, and sums of them, without one-hot products.

A two-layer network on concatenated one-hot inputs e(n_1), ..., e(n_S) computes
U^(1) e(n_1) + ... + U^(S) e(n_S) in its first layer: S rows gathered and added. The gradient of row
v of table s is the sum of the cotangent rows b with n_s(b) = v; RowIndex lists those rows once, so
backward is a sum over contiguous segments, with no atomics and no add.at."""

import numpy as np

from ..engine import row_kernels
from ..engine.border import integers
from ..engine.device import Array, Device
from ..engine.errors import InputError


class RowIndex:
    """Which row of each of S tables every input takes, and the inputs grouped by row.

    host     the index, int64 in [0, P): (S, B), or (E, S, B) when members see different inputs
    groups   with NumPy's kernels, {place of a member's arrays: by table, the inputs of every row};
             the place is (e,), or () of inputs that all members share. None: on a GPU and with
             compiled kernels, which take the three that follow
    index    host as int32
    order    argsort of index along B, int32
    starts   int32 (..., S, P + 1): the inputs of row v are order[starts[v]:starts[v + 1]]

    With backward=False the inputs are not grouped: for passes forward only.

    Sort the inputs by n_1 where their order is free: the first table is then summed without a
    gather. Raises InputError, which names `what` is indexed, for what is no integer of the table (a
    GPU would read another row silently).
    """

    def __init__(self, dev: Device, index: np.ndarray, rows: int, what="inputs", backward=True):
        index = integers(index, what, 0, rows - 1)
        if index.ndim not in (2, 3):
            raise InputError(f"{what} must have shape (S, B) or (E, S, B), not {index.shape}")
        self.rows = rows
        self.host = index
        *lead, S, B = index.shape
        plain = dev.kind == "cpu" and dev.kernels == "numpy"
        self.groups = {at: [None] * S for at in np.ndindex(*lead)} if plain else None
        self.index = None if plain else dev.to_device(index.astype(np.int32, order="C"))
        if not backward:
            return
        order = np.argsort(index, axis=-1, kind="stable")
        counts = [np.bincount(table, minlength=rows) for table in index.reshape(-1, B)]
        ends = np.cumsum(counts, axis=-1)
        starts = np.pad(ends, ((0, 0), (1, 0))).reshape(*lead, S, rows + 1)
        if self.groups is None:
            self.order = dev.to_device(order.astype(np.int32))
            self.starts = dev.to_device(starts.astype(np.int32))
            return
        for at in self.groups:
            tables = zip(index[at], order[at], starts[at], strict=True)
            self.groups[at] = [_HostGroups(*table) for table in tables]

    def __len__(self) -> int:
        return self.host.shape[-1]


class _HostGroups:
    """One table's inputs grouped for NumPy, in the form that takes the fewest calls.

    Few calls let threads run freely. Of the two forms the other one is None:

    segments   [(row, start, stop)]: order lists the inputs row by row, so those of a row stand side
               by side. Best where many inputs share few rows, and free of a gather where the inputs
               are sorted (order None).
    ranks      [(start, count)]: order lists the first input of every row, then every second one,
               and so on; rows that have most inputs come first, so that rank k is added to the head
               of rank 0. Best where many rows share few.
    """

    def __init__(self, index: np.ndarray, order: np.ndarray, starts: np.ndarray):
        counts = np.diff(starts)
        self.rows = np.flatnonzero(counts)
        self.order: np.ndarray | None = order
        self.segments: list[tuple[int, int, int]] | None = None
        self.ranks: list[tuple[int, int]] | None = None
        if len(index) and counts.max() < len(self.rows):
            self._by_rank(index, order, starts, counts)
        else:
            edges = starts.tolist()
            self.segments = [(v, edges[v], edges[v + 1]) for v in self.rows.tolist()]
            if (index[1:] >= index[:-1]).all():
                self.order = None

    def _by_rank(self, index: np.ndarray, order: np.ndarray, starts: np.ndarray, counts) -> None:
        self.rows = self.rows[np.argsort(-counts[self.rows], kind="stable")]  # most inputs first
        place = np.empty(len(counts), dtype=int)
        place[self.rows] = np.arange(len(self.rows))
        row = index[order]  # of each input in order
        rank = np.arange(len(order)) - starts[row]
        self.order = order[np.lexsort((place[row], rank))]
        sizes = np.bincount(rank)
        first = np.cumsum(sizes) - sizes
        self.ranks = list(zip(first.tolist(), sizes.tolist(), strict=True))


def embedding_forward(dev: Device, u: Array, rows: RowIndex, out=None):
    """h_b = sum_s u[s, n_s(b)]        u (..., S, P, N)   n (S, B) or (E, S, B)   h (..., B, N)

    S = 1 is an embedding, S = 2 the pair embedding W1[a] + W2[b] of one-hot inputs.
    Source: Grokking modular polynomials (first layer).
    """
    S, P, N = u.shape[-3:]
    B = len(rows)
    h = dev.empty((*u.shape[:-3], B, N)) if out is None else out
    if rows.groups is None:
        row_kernels.gather_sum(dev, u, rows.index, S, P, B, h)
        return h, (rows,)
    for at, groups in rows.groups.items():
        _gather_host(dev, u[at], rows.host[at], groups, h[at])
    return h, (rows,)


def _gather_host(dev: Device, u: Array, index: np.ndarray, groups: list, h: Array) -> None:
    """h_b = sum_s u[s, index[s, b]]; mode "clip" lets take fill out without a buffer of its own."""
    last = u[..., -1, :, :]
    last.take(index[-1], axis=-2, out=h, mode="clip")
    for s, group in enumerate(groups[:-1]):
        table = u[..., s, :, :]
        if group and group.segments and group.order is None:
            # Sorted inputs: a row goes to a run of them.
            for v, start, stop in group.segments:
                h[..., start:stop, :] += table[..., v : v + 1, :]
        else:
            more = dev.workspace.get("embedding.gathered", h.shape)
            h += table.take(index[s], axis=-2, out=more, mode="clip")


def embedding_backward(dev: Device, dh: Array, cache: tuple, du: Array, accumulate=False) -> None:
    """du[s, v] = sum over b with n_s(b) = v of dh_b        dh (..., B, N)   du (..., S, P, N)

    Writes du, or adds to it with accumulate (a further shard of the batch).
    """
    (rows,) = cache
    if rows.groups is None:
        S, P, _ = du.shape[-3:]
        tables = (rows.order, rows.starts, S, P, len(rows))
        whole = dev.xp.ascontiguousarray(du)  # a copy, where du holds the neurons of a shard
        row_kernels.segment_sum(dev, dh, *tables, int(accumulate), whole)
        if whole is not du:
            du[...] = whole
        return
    if not accumulate:
        du.fill(0)
    for at, groups in rows.groups.items():
        _add_groups_host(dev, dh[at], groups, du[at])


def _add_groups_host(dev: Device, dh: Array, groups: list, du: Array) -> None:
    """du[s, v] += the sum of the rows of dh that table s's group of row v lists."""
    for s, group in enumerate(groups):
        table = du[..., s, :, :]
        grouped = dh
        if group.order is not None:
            grouped = dev.workspace.get("embedding.grouped", dh.shape)
            dh.take(group.order, axis=-2, out=grouped, mode="clip")
        if group.ranks:
            for start, count in group.ranks[1:]:
                grouped[..., :count, :] += grouped[..., start : start + count, :]
            table[..., group.rows, :] += grouped[..., : len(group.rows), :]
        else:
            for v, start, stop in group.segments:
                table[..., v, :] += dev.xp.add.reduce(grouped[..., start:stop, :], axis=-2)
