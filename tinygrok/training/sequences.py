"""Training on drawn batches, of token sequences (accuracies by position) or images, cut by rows
over the worker threads.

Works with fit() and the checkpoints of checkpoint.py. A batch is a pure function of (seed, step),
so that a checkpoint needs weights, optimiser state, history and the step.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from ..engine.device import Array, Device
from ..engine.errors import InputError
from ..engine.rng import STREAMS
from ..models.gpt import GPT, Tokens
from ..models.protocol import Mode
from .loop import NonFiniteLoss, Objective, shard_edges
from .parallel import world

# Of the widest activation (rows, tokens, 4 C) of a shard: CPU, and what a GPU evaluates at once (it
# trains on whole batches).
SHARD_BYTES = {"cpu": 2_000_000, "cuda": 500_000_000}
SHARD_IMAGES = 16


class TokenBatch:
    """Sequences (B, T + 1) whose tokens 0..T-1 are read and whose tokens at positions + 1 are the
    targets; cut into shards of whole rows on the CPU. positions: increasing input positions that
    carry loss. rows: those of this rank."""

    def __init__(self, dev: Device, model: GPT, tokens: np.ndarray, positions, rows=slice(None)):
        positions = np.asarray(positions)
        self.norm, tokens = len(tokens) * len(positions), tokens[rows]
        targets = tokens[:, positions + 1]
        inputs = tokens[:, : positions[-1] + 1]  # nothing behind the last prediction is read
        widest = inputs.size * 4 * model.width * dev.dtype.itemsize
        edges = shard_edges(len(tokens), widest / SHARD_BYTES[dev.kind])
        step = positions[1] - positions[0] if len(positions) > 1 else 1
        even = (np.diff(positions) == step).all()
        select = slice(int(positions[0]), int(positions[-1]) + 1, int(step)) if even else positions

        def part(a: int, b: int) -> tuple:
            return (
                Tokens(dev, inputs[a:b], model.vocab, select),
                dev.to_device(targets[a:b].reshape(-1)),
                a,
            )

        self._shards = [part(a, b) for a, b in pairwise(edges)]
        self.targets, self.weight = targets, None
        if dev.kind == "cuda":
            self.rows, self.target, _ = self._shards[0] if len(edges) == 2 else part(0, len(tokens))

    def shards(self, e: None = None) -> list[tuple]:
        """(tokens, targets, first row) of every shard."""
        return self._shards

    def size(self, e: None = None) -> int:
        """Number of predictions in the batch of all ranks."""
        return self.norm


class SequenceTraining:
    """A decoder in training.

    draw         generator -> sequences (B, T + 1): the batch of a step
    positions    input positions that carry loss
    sets         {name: sequences}: measured as accuracy and loss by position
    extra        {name: sequences} of one measurement's predictions (B, Tq) -> further numbers for the history
    """

    def __init__(
        self,
        dev: Device,
        model,
        optimizer,
        draw: Callable,
        positions,
        sets: dict,
        seed: int,
        extra: Callable[["SequenceTraining", dict], dict] = lambda run, predicted: {},
    ):
        self.dev, self.model, self.optimizer, self.draw, self.positions = (
            dev,
            model,
            optimizer,
            draw,
            positions,
        )
        self.params, self.grads, self.seed, self.extra = (
            optimizer.params,
            optimizer.grads,
            seed,
            extra,
        )
        self.objective = Objective(dev, model, self.params, "cross_entropy")
        self.sets = {name: self.make_batch(data) for name, data in sets.items()}
        self.t, self.history, self.world = 0, {"step": []}, world()
        self.world.join(dev)

    def batch(self, t: int) -> TokenBatch:
        """The batch of step t = 1, 2, ..."""
        rng = np.random.default_rng(
            np.random.SeedSequence(self.seed, spawn_key=(STREAMS.index("batches"), t))
        )
        return self.make_batch(self.draw(rng), training=True)

    def make_batch(self, data, training: bool = False) -> TokenBatch:
        """This rank's rows of what is drawn, or a set to measure, on the device."""
        rows = self.world.rows(len(data)) if training else slice(None)
        return TokenBatch(self.dev, self.model, data, self.positions, rows)

    def step(self) -> Array:
        """One optimiser step; returns the loss before it."""
        loss = self.objective.gradient(self.grads, self.batch(self.t + 1))
        self.world.sum(self.grads.flat, loss)
        if self.dev.kind == "cpu" and not np.isfinite(
            loss
        ):  # on a GPU reading the loss would wait for it
            raise NonFiniteLoss(f"step {self.t + 1}: the loss is {float(loss)}")
        self.optimizer.step(self.t + 1)
        self.t += 1
        return loss

    def predict(self, batch: TokenBatch) -> tuple[np.ndarray, np.ndarray]:
        """Predicted tokens and losses (B, Tq) of a batch."""
        w, dev = self.params.views | self.objective.buffers.views, self.dev

        def run(shard):
            tokens, target, _ = shard
            z, _ = self.model.forward(dev, w, tokens, Mode(buffer=dev.workspace.get))
            predicted = dev.to_host(z.argmax(axis=-1))
            return predicted, dev.to_host(self.objective.row_loss(dev, z, target, out=z)[0])

        parts = dev.map(run, batch.shards())
        return tuple(
            np.concatenate(x).reshape(batch.targets.shape) for x in zip(*parts, strict=True)
        )

    def measure(self) -> dict[str, np.ndarray]:
        """Append step, accuracy and loss by position of every set, and the extra numbers to the
        history; returns the new row."""
        row, everything = {"step": self.t}, {}
        for name, batch in self.sets.items():
            predicted, losses = self.predict(batch)
            if not np.isfinite(losses).all():
                raise NonFiniteLoss(f"step {self.t}: the loss on {name} is not finite")
            everything[name] = predicted
            row[f"{name}_accuracy"] = (predicted == batch.targets).mean(axis=0)
            row[f"{name}_loss"] = losses.mean(axis=0)
        row |= self.extra(self, everything)
        for key, value in row.items():
            self.history.setdefault(key, []).append(value)
        return row


class ImageBatch(TokenBatch):
    """Images (n, H, W, C) and labels (n,), cut into shards unless `whole` (BatchNorm takes all; a
    GPU trains on all). rows: those of this rank."""

    def __init__(
        self, dev: Device, images: np.ndarray, labels: np.ndarray, whole: bool, rows=slice(None)
    ):
        self.norm, images, labels = len(labels), images[rows], labels[rows]
        edges = [0, len(labels)] if whole else shard_edges(len(labels), len(labels) / SHARD_IMAGES)
        self._shards = [
            (dev.to_device(images[a:b]), dev.to_device(labels[a:b]), a) for a, b in pairwise(edges)
        ]
        self.targets, self.weight = labels, None
        self.rows, self.target, _ = self._shards[0]


class ImageTraining(SequenceTraining):
    """A network in training on images; draw and sets give (images, labels), positions are None."""

    def make_batch(self, data, training: bool = False) -> ImageBatch:
        rows = self.world.rows(len(data[1])) if training else slice(None)
        if training and self.model.batchnorm and self.world.size > 1:
            raise InputError("BatchNorm needs all rows of a batch: train on one rank")
        return ImageBatch(
            self.dev, *data, training and (self.model.batchnorm or self.dev.kind == "cuda"), rows
        )
