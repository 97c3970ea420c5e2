"""The mean loss of a model over a batch, its gradient, and predictions.

A sum over many rows has the same bits for any number of threads: shards form at most GROUPS groups,
each group has a gradient of its own, and these are added in order.
"""

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from ..engine.device import Array, Device
from ..engine.errors import InputError
from ..engine.params import Arena, cut
from ..models.protocol import Mode, Model, NeuronModel
from ..ops.loss import LOSSES, ROW_LOSSES
from .batches import GROUPS, Batch, Shard, even_slices, table_shards

Dropout = tuple | None  # (keys (E, 2) or (2,), rate (E,) or float) of a step (engine/rng.mask_keys)


def quiet() -> np.errstate:
    """Overflow without a warning: a loss that is not finite ends the run with a message of its
    own."""
    return np.errstate(over="ignore", invalid="ignore")


class Objective:
    """The mean loss of a model over a batch, its gradient, and predictions.

    GPU: all members and rows at once. CPU: member by member and shard by shard over the worker
    threads, so that the result depends neither on the number of threads nor on the other members: a
    member equals the network trained alone, bit by bit. Raises InputError for an unknown loss."""

    def __init__(self, dev: Device, model: Model, params: Arena, loss: str = "mse"):
        if loss not in LOSSES:
            raise InputError(f"unknown loss {loss!r}: choose {' or '.join(LOSSES)}")
        self.dev = dev
        self.model = model
        self.params = params
        self.loss = loss
        self.loss_forward, self.loss_backward = LOSSES[loss]
        self.row_loss = ROW_LOSSES[loss]
        self.buffers = Arena(dev, model.buffers, params.members)
        members = [None] if params.members is None else range(params.members)
        for e in members:
            self.buffers.load(model.init_buffers(), e)

    def tensors(self, e: int | None = None) -> dict[str, Array]:
        """Parameters and buffers of member e; of all, or of the only network, for None."""
        return self.params.member(e) | self.buffers.member(e)

    def _each(self, function: Callable) -> Array | list:
        """function(e) of every member: spread over the threads when there are enough members, else
        each uses all threads."""
        members = self.params.members
        if members is None:
            return function(None)
        if self.dev.threads <= members:
            return self.dev.map(function, range(members))
        return [function(e) for e in range(members)]

    # -- gradient ----------------------------------------------------------------------------------

    def gradient(self, grads: Arena, batch: Batch, dropout: Dropout = None) -> Array:
        """Write the gradient of the batch into grads; returns the loss (E,) or (), on the
        device."""
        if batch.whole is not None:
            w = self.tensors()
            return self._pass(w, grads.views, batch.whole, batch.norm, dropout, batch.weight)

        def member(e: int | None) -> float:
            return self._member_gradient(grads, batch, _of_member(dropout, e), e)

        return np.asarray(self._each(member))

    def _pass(self, w, g, shard: Shard, norm, dropout, weight=None, accumulate=False) -> Array:
        """Forward and backward on one shard; returns its share of the loss."""
        dev = self.dev
        mode = Mode(True, dropout, weight, shard.start, dev.workspace.get)
        with quiet():
            z, tape = self.model.forward(dev, w, shard.inputs, mode)
            loss, cache = self.loss_forward(dev, z, shard.target, weight, norm, out=z)
            dz = self.loss_backward(dev, 1.0, cache, dlogits=z)
            self.model.backward(dev, dz, tape, g, accumulate)
        return loss

    def _member_gradient(
        self, grads: Arena, batch: Batch, dropout: Dropout, e: int | None
    ) -> float:
        """The gradient of one member, group by group; returns its loss."""
        if self.model.by_neurons and self.model.batchnorm and dropout is None:
            return self._gradient_by_neurons(grads, batch, e)
        w = self.tensors(e)
        g = grads.member(e)
        size = batch.size(e)
        groups = _grouped(batch.shards(e))
        if len(groups) == 1:
            return self._group_gradient(w, g, groups[0], size, dropout)
        shape = (len(groups), grads.flat.size // (grads.members or 1))
        slots = self.dev.workspace.get("gradient.slots", shape)

        def group(i: int) -> float:
            slot = cut(slots[i], grads.bare)
            return self._group_gradient(w, slot, groups[i], size, dropout)

        losses = self.dev.map(group, range(len(groups)))
        self._add_slots(slots, g)
        return sum(losses)

    def _group_gradient(
        self, w: dict, g: dict, group: list[Shard], size: int, dropout: Dropout
    ) -> float:
        """Write the gradient of one group of shards into g, one after the other."""
        losses = []
        for i, shard in enumerate(group):
            loss = self._pass(w, g, shard, size, dropout, accumulate=i > 0)
            losses.append(float(loss))
        return sum(losses)

    def _add_slots(self, slots: Array, g: dict) -> None:
        """g = the sum of the groups' gradients (rows of slots), tensor by tensor over the
        threads."""
        views = list(g.values())
        ends = np.cumsum([view.size for view in views])

        def add(i: int) -> None:
            view = views[i]
            part = slots[:, ends[i] - view.size : ends[i]]
            with np.errstate(over="ignore", invalid="ignore"):  # the loss shows what is not finite
                np.add.reduce(part.reshape(-1, *view.shape), axis=0, out=view)

        self.dev.map(add, range(len(views)))

    def _gradient_by_neurons(self, grads: Arena, batch: Batch, e: int | None) -> float:
        """With BatchNorm, whose neurons each need all rows: the threads share the neurons, which
        meet in the logits. One thread makes all that would be a single shard without BatchNorm."""
        dev = self.dev
        model = cast(NeuronModel, self.model)
        w = self.tensors(e)
        g = grads.member(e)
        shard = batch.shards(e)[0]
        count = GROUPS if table_shards(dev, model.width, batch.size(e)) > 1 else 1
        parts = even_slices(model.width, min(count, model.width))

        @quiet()
        def forward(i: int) -> tuple[Array, dict]:
            def buffer(name: str, shape: tuple[int, ...]) -> Array:
                return dev.workspace.get(f"{name}.{i}", shape)  # all parts are alive at once

            mode = Mode(train=True, buffer=buffer)
            return model.forward(dev, model.neurons(w, parts[i]), shard.inputs, mode)

        passes = dev.map(forward, range(len(parts)))
        z, _ = passes[0]
        with quiet():
            for more, _ in passes[1:]:
                z += more
            loss, cache = self.loss_forward(dev, z, shard.target, None, batch.size(e), out=z)
            dz = self.loss_backward(dev, 1.0, cache, dlogits=z)

        @quiet()
        def backward(i: int) -> None:
            _, tape = passes[i]
            model.backward(dev, dz, tape, model.neurons(g, parts[i]))

        dev.map(backward, range(len(parts)))
        return float(loss)

    # -- predictions -------------------------------------------------------------------------------

    def logits(self, shard: Shard, e: int | None = None) -> Array:
        """Logits of a shard in evaluation mode, by member e or by all members at once."""
        mode = Mode(buffer=self.dev.workspace.get)
        z, _ = self.model.forward(self.dev, self.tensors(e), shard.inputs, mode)
        return z

    def predict(
        self, batch: Batch, labels: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Predictions (E, B) on inputs that all members share and, for each labels (B,) or (E, B),
        the row losses (E, B), on the host; without E for a single network."""
        dev = self.dev
        members = self.params.members
        shape = (batch.size(),) if members is None else (members, batch.size())
        predicted = np.empty(shape, dtype=np.int64)
        losses = [np.empty(shape) for _ in labels]

        @quiet()
        def measure(e: int | None, shard: Shard) -> None:
            rows = slice(shard.start, shard.start + len(shard.inputs))
            at = (..., rows) if e is None else (e, rows)
            z = self.logits(shard, e)
            predicted[at] = dev.to_host(z.argmax(axis=-1))
            for given, into in zip(labels, losses, strict=True):
                own = given[rows] if given.ndim == 1 else given[at]
                row_losses, _ = self.row_loss(dev, z, dev.to_device(own))
                into[at] = dev.to_host(row_losses)

        def member(e: int | None) -> None:
            dev.map(lambda shard: measure(e, shard), batch.shards())

        if dev.kind == "cuda":
            member(None)
        else:
            self._each(member)
        return predicted, losses


def _of_member(dropout: Dropout, e: int | None) -> Dropout:
    """(keys, rate) of one member; None where its rate is 0."""
    if dropout is None or e is None:
        return dropout
    keys, rates = dropout
    rate = float(np.broadcast_to(rates, len(keys))[e])
    return (keys[e], rate) if rate else None


def _grouped(shards: list[Shard]) -> list[list[Shard]]:
    """At most GROUPS runs of consecutive shards."""
    groups = [shards[part] for part in even_slices(len(shards), GROUPS)]
    return [group for group in groups if group]
