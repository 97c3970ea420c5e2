"""Batches: labelled inputs in the form that a network reads, cut by rows into shards.

On a CPU a shard stays in cache, and the worker threads share the shards; a GPU takes a batch whole.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..engine.border import integers
from ..engine.device import Array, Device
from ..models.chain import Chain
from ..models.gpt import GPT
from ..models.mlp import TwoLayerNet
from ..models.pairs import PairTransformer
from ..models.tokens import Tokens

# Bytes of the widest activation of a shard. CPU: it shares a cache of a few MiB with what is made
# of it. GPU: what is evaluated at once; training takes whole batches.
TABLE_SHARD_BYTES = {"cpu": 1_200_000, "cuda": 16_000_000}  # hidden activations (rows, N)
TOKEN_SHARD_BYTES = {"cpu": 2_000_000, "cuda": 500_000_000}  # of an MLP (rows, tokens, 4 C)
# Outputs (images, ...) of a block. A product of so little work gains nothing from a second thread;
# where images are large, a shard still has enough of them to be worth reading all weights.
IMAGE_SHARD_BYTES = {"cpu": 100_000, "cuda": 16_000_000}
SHARD_IMAGES = 16  # at least
GROUPS = 4  # shards are summed in at most this many groups, whatever the number of threads

Labelled = tuple[np.ndarray, np.ndarray]  # host inputs and their labels
TableNet = TwoLayerNet | PairTransformer  # what trains on tables
EVERY_ROW = slice(None)


class Shard(NamedTuple):
    """Consecutive rows of a batch.

    inputs   what the model's forward reads: a RowIndex, Tokens or images
    target   their labels (B,), or (E, B) of all members
    start    the row of the batch at which the shard starts
    """

    inputs: Any
    target: Array
    start: int


class Batch(Protocol):
    """What the objective asks of labelled inputs.

    whole    all rows of all members as one shard, for a GPU; None: go shard by shard
    weight   (E, B) weights of the rows of `whole`; None: equal ones
    norm     what the summed loss of `whole` is divided by; None: the sum of the weights
    """

    whole: Shard | None
    weight: Array | None
    norm: int | None

    def shards(self, e: int | None = None) -> list[Shard]:
        """The rows of member e (None: of the only network, or what all members share)."""
        ...

    def size(self, e: int | None = None) -> int:
        """Labels of member e on all ranks: its loss is the mean over them."""
        ...


def even_slices(size: int, count: int) -> list[slice]:
    """0, 1, ..., size - 1 as `count` slices of nearly the same length, in order."""
    edges = [size * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def shard_rows(rows: int, wanted: float) -> list[slice]:
    """Cut rows into about the wanted number of shards: one, or a multiple of GROUPS, so that all
    groups have the same work, where so many are wanted."""
    least = 2 if wanted > 1 else 1
    return even_slices(rows, min(rows, max(GROUPS * round(wanted / GROUPS), least)))


# -- tables ----------------------------------------------------------------------------------------


class TableBatch:
    """Labelled inputs of every member, sorted by n_1 (the order of a batch is free).

    data    [(inputs (S, B), target (B,))] host integers: one entry that all members share, or one
            per member, of any sizes
    whole   one shard only (BatchNorm needs the statistics of all rows)
    """

    norm: int | None = None

    def __init__(self, dev: Device, model: TableNet, data: Sequence[Labelled], whole: bool = False):
        self.data = [_sorted(inputs, target, model.classes) for inputs, target in data]
        self.sizes = [len(target) for _, target in self.data]
        self.whole: Shard | None = None
        self.weight: Array | None = None
        if dev.kind == "cuda":
            self._stack(dev, model)
        self._shards = [_table_shards(dev, model, *member, whole) for member in self.data]

    def _stack(self, dev: Device, model: TableNet) -> None:
        """Members side by side for a GPU: (E, S, B) and (E, B), shorter ones padded with rows of
        weight 0."""
        inputs, target = self.data[0]
        if len(self.data) > 1:
            longest = max(self.sizes)
            inputs = np.stack([_padded(n, longest) for n, _ in self.data])
            target = np.stack([_padded(t, longest) for _, t in self.data])
            weight = np.arange(longest) < np.array(self.sizes)[:, None]
            if not weight.all():
                self.weight = dev.to_device(weight.astype(float))
        self.whole = Shard(model.prepare(dev, inputs), dev.to_device(target), 0)

    def shards(self, e: int | None = None) -> list[Shard]:
        """The rows of member e, or those that all share."""
        return self._shards[self._entry(e)]

    def size(self, e: int | None = None) -> int:
        """Number of rows of member e."""
        return self.sizes[self._entry(e)]

    def _entry(self, e: int | None) -> int:
        return 0 if e is None or len(self.data) == 1 else e


def _sorted(inputs: np.ndarray, target: np.ndarray, classes: int) -> Labelled:
    """By n_1: the rows of a batch that read one row of the first table stand side by side."""
    inputs = integers(inputs, "inputs", 0)
    target = integers(target, "labels", 0, classes - 1)
    order = np.argsort(inputs[0], kind="stable")
    return inputs[:, order], target[order]


def _padded(x: np.ndarray, size: int) -> np.ndarray:
    """Zeros behind the last axis."""
    padded = np.zeros((*x.shape[:-1], size), x.dtype)
    padded[..., : x.shape[-1]] = x
    return padded


def table_shards(dev: Device, width: int, rows: int) -> float:
    """Shards that the hidden activations (rows, N) of a network of this width ask for."""
    return rows * width * dev.dtype.itemsize / TABLE_SHARD_BYTES[dev.kind]


def _table_shards(
    dev: Device, model: TableNet, inputs: np.ndarray, target: np.ndarray, whole: bool
) -> list[Shard]:
    rows = len(target)
    wanted = table_shards(dev, model.width, rows)
    shards = []
    for part in shard_rows(rows, 1 if whole else wanted):
        read = model.prepare(dev, inputs[:, part])
        shards.append(Shard(read, target[part], part.start))
    return shards


# -- what is drawn anew for every step -------------------------------------------------------------


class DrawnBatch:
    """What token and image batches share: one network, rows of equal weight.

    read      slice of the rows -> what the model reads of them
    targets   all labels of these rows, on the host
    size      number of labels of all ranks
    wanted    number of shards; a GPU trains on the whole batch
    """

    weight: Array | None = None

    def __init__(
        self, dev: Device, read: Callable, targets: np.ndarray, size: int, wanted, training: bool
    ):
        at_once = training and dev.kind == "cuda"
        self._shards = []
        for part in shard_rows(len(targets), 1 if at_once else wanted):
            labels = dev.to_device(targets[part].reshape(-1))
            self._shards.append(Shard(read(part), labels, part.start))
        self.whole: Shard | None = self._shards[0] if at_once else None
        self.norm: int | None = size
        self.targets = targets
        self._size = size

    def shards(self, e: int | None = None) -> list[Shard]:
        """All rows; there is one network."""
        return self._shards

    def size(self, e: int | None = None) -> int:
        """Number of labels in the batch of all ranks."""
        return self._size


class TokenBatch(DrawnBatch):
    """Sequences (B, T + 1): tokens 0..T-1 are read, and those at positions + 1 are the targets.

    positions   increasing input positions that carry loss
    rows        those of this rank
    """

    def __init__(
        self, dev: Device, model: GPT, tokens: np.ndarray, positions, rows=EVERY_ROW, training=False
    ):
        tokens = integers(tokens, "tokens", 0, model.vocab - 1)
        positions = integers(positions, "positions with a next token", 0, tokens.shape[1] - 2)
        size = len(tokens) * len(positions)
        tokens = tokens[rows]
        inputs = tokens[:, : positions[-1] + 1]  # nothing behind the last prediction is read
        widest = inputs.size * 4 * model.width * dev.dtype.itemsize
        wanted = widest / TOKEN_SHARD_BYTES[dev.kind]
        select = _as_slice(positions)

        def read(part: slice) -> Tokens:
            return Tokens(dev, inputs[part], model.vocab, select)

        super().__init__(dev, read, tokens[:, positions + 1], size, wanted, training)


def _as_slice(positions: np.ndarray) -> slice | np.ndarray:
    """Positions at even distances as a slice, whose rows are views; others as they are."""
    step = int(positions[1] - positions[0]) if len(positions) > 1 else 1
    if (np.diff(positions) == step).all():
        return slice(int(positions[0]), int(positions[-1]) + 1, step)
    return positions


@functools.lru_cache(maxsize=8)
def widest_output(model: Chain, image: tuple[int, ...]) -> int:
    """Entries of the widest output of a block, of one image of this shape."""
    dev = Device("cpu", np)
    zeros = {name: dev.zeros(shape) for name, shape in (model.shapes | model.buffers).items()}
    _, tape = model.forward(dev, zeros, dev.zeros((1, *image)))
    return max(tape[name].size for name, _ in model.blocks)


class ImageBatch(DrawnBatch):
    """Images (n, H, W, C) and labels (n,): one shard where BatchNorm trains on them.

    A shard has IMAGE_SHARD_BYTES of the widest output of a block, and at least SHARD_IMAGES images.
    data   (images, labels)
    rows   those of this rank
    """

    def __init__(self, dev: Device, model: Chain, data: Labelled, rows=EVERY_ROW, training=False):
        size = len(data[1])
        images = data[0][rows]
        labels = integers(data[1], "labels", 0, model.classes - 1)[rows]
        wanted: float = 1
        if not (training and model.batchnorm):
            image_bytes = widest_output(model, images.shape[1:]) * dev.dtype.itemsize
            wanted = len(labels) / max(IMAGE_SHARD_BYTES[dev.kind] / image_bytes, SHARD_IMAGES)

        def read(part: slice) -> Array:
            return model.prepare(dev, images[part])

        super().__init__(dev, read, labels, size, wanted, training)
