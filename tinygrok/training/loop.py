"""Training: batches cut into shards, gradients summed in a fixed order, and the loop.

A run is a pure function of its configuration and seed: weights, split and dropout masks come from
named streams (engine/rng.py), the order of minibatches from (seed, epoch). So a checkpoint needs
arrays and a step number, no more."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from ..engine.device import Array, Device
from ..engine.errors import InputError
from ..engine.params import Arena, cut
from ..engine.rng import STREAMS, mask_keys
from ..models.protocol import Mode, Model
from ..ops.dropout import check_rate_host
from ..ops.embedding import RowIndex
from ..ops.loss import LOSSES, ROW_LOSSES

# One hidden activation of a shard. CPU: with its square it stays in a cache of a few MiB. GPU:
# shards of an evaluation.
SHARD_BYTES = {"cpu": 1_200_000, "cuda": 16_000_000}
GROUPS = 4  # shards are summed in at most this many groups, whatever the number of threads


class NonFiniteLoss(ArithmeticError):
    """Training stopped at a loss that is not finite; names step, member (also in .member) and
    tensor."""

    def __init__(self, message: str, member: int = 0):
        super().__init__(message)
        self.member = member


def shard_edges(rows: int, wanted: float) -> list[int]:
    """Cut rows into about the wanted number of shards: a multiple of GROUPS, so that all groups
    have the same work, where so many are wanted."""
    count = min(rows, max(round(wanted / GROUPS) * GROUPS, 1 + (wanted > 1)))
    return [rows * i // count for i in range(count + 1)]


class Batch:
    """Labelled inputs of every member, sorted by n_1 (the order of a batch is free) and cut into
    shards on the CPU.

    data    [(inputs (S, B), target (B,))] host integers: one entry that all members share, or one per member, of any sizes
    whole   one shard only (BatchNorm needs the statistics of all rows)
    """

    norm = None  # the loss is divided by the sum of the weights

    def __init__(
        self,
        dev: Device,
        data: Sequence[tuple[np.ndarray, np.ndarray]],
        rows: int,
        width: int,
        whole: bool = False,
    ):
        orders = [np.argsort(inputs[0], kind="stable") for inputs, _ in data]
        self.data = [(n[:, order], t[order]) for (n, t), order in zip(data, orders, strict=True)]
        self.sizes = [len(t) for _, t in self.data]
        if dev.kind == "cuda":
            self._stack(dev, rows)
        self._shards = []
        for n, t in self.data:
            edges = (
                [0, len(t)]
                if whole
                else shard_edges(
                    len(t), len(t) * width * dev.dtype.itemsize / SHARD_BYTES[dev.kind]
                )
            )
            self._shards.append(
                [(RowIndex(dev, n[:, a:b], rows), t[a:b], a) for a, b in pairwise(edges)]
            )

    def _stack(self, dev: Device, rows: int) -> None:
        """Members side by side for a GPU: (E, S, B) and (E, B), shorter ones padded with rows of
        weight 0."""
        if len(self.data) == 1:
            inputs, target, self.weight = *self.data[0], None
        else:
            longest = max(self.sizes)
            inputs = np.stack(
                [np.pad(n, ((0, 0), (0, longest - n.shape[1]))) for n, _ in self.data]
            )
            target = np.stack([np.pad(t, (0, longest - len(t))) for _, t in self.data])
            weight = (np.arange(longest) < np.array(self.sizes)[:, None]).astype(float)
            self.weight = None if weight.all() else dev.to_device(weight)
        self.rows, self.target = RowIndex(dev, inputs, rows), dev.to_device(target)

    def shards(self, e: int | None) -> list[tuple[RowIndex, np.ndarray, int]]:
        """(row index, target, first row) of every shard of member e."""
        return self._shards[e if e is not None and len(self._shards) > 1 else 0]

    def size(self, e: int | None) -> int:
        return self.sizes[e if e is not None and len(self.sizes) > 1 else 0]


class Objective:
    """The mean loss of a model over a batch, its gradient, and predictions.

    GPU: all members and rows at once. CPU: member by member and shard by shard over the worker
    threads. Shards form at most GROUPS groups, each group has its own gradient, and these are added
    in order, so that the result depends neither on the number of threads nor on the other members:
    a member equals the network trained alone, bit by bit."""

    def __init__(self, dev: Device, model: Model, params: Arena, loss: str = "mse"):
        if loss not in LOSSES:
            raise InputError(f"unknown loss {loss!r}: choose {' or '.join(LOSSES)}")
        self.dev, self.model, self.params = dev, model, params
        self.buffers = Arena(dev, model.buffers, params.members)
        for e in range(params.members or 1):
            self.buffers.load(model.init_buffers(), None if params.members is None else e)
        self.loss_forward, self.loss_backward = LOSSES[loss]
        self.row_loss = ROW_LOSSES[loss]

    def _tensors(self, e: int | None) -> dict:
        return self.params.member(e) | self.buffers.member(e)

    def gradient(self, grads: Arena, batch: Batch, dropout: tuple | None = None) -> Array:
        """Write the gradient of the batch into grads; returns the loss (E,) or (), on the device.

        dropout: (keys (E, 2) or (2,), rate (E,) or float) of this step (rng.mask_keys).
        """
        if self.dev.kind == "cuda":
            shard = batch.rows, batch.target, 0
            return self._pass(
                self._tensors(None), grads.views, shard, batch.norm, dropout, batch.weight
            )

        def member(e):
            mine = dropout
            if dropout is not None and e is not None:
                keys, rates = dropout
                rate = float(np.broadcast_to(rates, len(keys))[e])
                mine = (keys[e], rate) if rate else None
            return self._member_gradient(grads, batch, mine, e)

        return np.asarray(self._each(member))

    def _each(self, fn: Callable):
        """fn of every member: spread over the threads when there are enough members, else each uses
        all threads."""
        E = self.params.members
        if E is None:
            return fn(None)
        return self.dev.map(fn, range(E)) if self.dev.threads <= E else [fn(e) for e in range(E)]

    def _pass(
        self, w: dict, g: dict, shard: tuple, norm, dropout, weight=None, accumulate=False
    ) -> Array:
        """Forward and backward on one shard; returns its share of the loss."""
        rows, target, offset = shard
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # a loss that is not finite ends the run with its own message
            mode = Mode(True, dropout, weight, offset, self.dev.workspace.get)
            z, tape = self.model.forward(self.dev, w, rows, mode)
            loss, cache = self.loss_forward(self.dev, z, target, weight, norm, out=z)
            self.model.backward(
                self.dev, self.loss_backward(self.dev, 1.0, cache, dlogits=z), tape, g, accumulate
            )
        return loss

    def _member_gradient(self, grads: Arena, batch: Batch, dropout, e: int | None) -> float:
        if self.buffers.shapes and dropout is None and self.model.by_neurons:
            return self._gradient_by_neurons(grads, batch, e)
        w, g, shards, size = self._tensors(e), grads.member(e), batch.shards(e), batch.size(e)
        groups = [
            shards[len(shards) * i // GROUPS : len(shards) * (i + 1) // GROUPS]
            for i in range(GROUPS)
        ]
        groups = [group for group in groups if group]
        slots = None
        if len(groups) > 1:
            slots = self.dev.workspace.get(
                "gradient.slots", (len(groups), grads.flat.size // (grads.members or 1))
            )

        def run_group(i: int) -> float:
            into = g if slots is None else cut(slots[i], grads.bare)
            losses = [
                self._pass(w, into, s, size, dropout, accumulate=j > 0)
                for j, s in enumerate(groups[i])
            ]
            return sum(map(float, losses))

        losses = self.dev.map(run_group, range(len(groups)))
        if slots is not None:
            ends = np.cumsum([view.size for view in g.values()])
            parts = [
                slots[:, end - view.size : end].reshape(-1, *view.shape)
                for end, view in zip(ends, g.values(), strict=True)
            ]
            self.dev.map(
                lambda x: np.add.reduce(x[0], axis=0, out=x[1]), zip(parts, g.values(), strict=True)
            )
        return sum(losses)

    def _gradient_by_neurons(self, grads: Arena, batch: Batch, e: int | None) -> float:
        """With BatchNorm, whose neurons each need all rows: the threads share the neurons, which
        meet in the logits."""
        (rows, target, _), quiet = batch.shards(e)[0], np.errstate(over="ignore", invalid="ignore")
        count = min(GROUPS, self.model.width)
        parts = [
            slice(self.model.width * i // count, self.model.width * (i + 1) // count)
            for i in range(count)
        ]

        @quiet
        def forward(i: int) -> tuple:
            def buffer(name: str, shape: tuple[int, ...]) -> Array:  # of all parts, alive at once
                return self.dev.workspace.get(f"{name}.{i}", shape)

            part = self.model.neurons(self._tensors(e), parts[i])
            return self.model.forward(self.dev, part, rows, Mode(train=True, buffer=buffer))

        @quiet
        def backward(i: int) -> None:
            self.model.backward(
                self.dev, dz, passes[i][1], self.model.neurons(grads.member(e), parts[i])
            )

        passes = self.dev.map(forward, range(count))
        z = passes[0][0]
        with quiet:
            for other, _ in passes[1:]:
                z += other
            loss, cache = self.loss_forward(self.dev, z, target, None, batch.size(e), out=z)
            dz = self.loss_backward(self.dev, 1.0, cache, dlogits=z)
        self.dev.map(backward, range(count))
        return float(loss)

    def predict(
        self, batch: Batch, labels: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Evaluation mode on inputs that all members share: predictions (E, B) and, for each labels
        (B,) or (E, B), the row losses (E, B), on the host, without E for a single network."""
        lead = () if self.params.members is None else (self.params.members,)
        predicted = np.empty((*lead, batch.sizes[0]), dtype=np.int64)
        losses = [np.empty(predicted.shape) for _ in labels]

        def run(e: int | None, shard: tuple) -> None:
            """One shard of member e, or of all members at once (None)."""
            rows, _, offset = shard
            part = slice(offset, offset + len(rows))
            at = (..., part) if e is None else (e, part)
            with np.errstate(over="ignore", invalid="ignore"):
                mode = Mode(buffer=self.dev.workspace.get)
                z, _ = self.model.forward(self.dev, self._tensors(e), rows, mode)
                predicted[at] = self.dev.to_host(z.argmax(axis=-1))
                for given, into in zip(labels, losses, strict=True):
                    target = self.dev.to_device(given[part] if given.ndim == 1 else given[at])
                    into[at] = self.dev.to_host(self.row_loss(self.dev, z, target)[0])

        def member(e: int | None) -> None:
            self.dev.map(lambda shard: run(e, shard), batch.shards(None))

        if self.dev.kind == "cuda":
            member(None)
        else:
            self._each(member)
        return predicted, losses


class Evaluation:
    """Which inputs are measured, and how they are grouped.

    inputs (S, B)   shared by all members, usually the whole table
    labels {name: (B,) or (E, B)}: label sets, for instance as given in training, and true
    splits {name: (mask (B,) or (E, B), label set)}: accuracy and mean loss over the masked inputs;
    nan for none"""

    def __init__(
        self,
        inputs: np.ndarray,
        labels: dict[str, np.ndarray],
        splits: dict[str, tuple[np.ndarray, str]],
    ):
        order = np.argsort(inputs[0], kind="stable")  # as Batch sorts
        self.inputs = inputs[:, order]
        self.labels = {name: x[..., order] for name, x in labels.items()}
        self.splits = {name: (mask[..., order], which) for name, (mask, which) in splits.items()}

    @classmethod
    def of_task(cls, task, **numbers: np.ndarray) -> "Evaluation":
        """Splits of a task by the numbers of their inputs: of_task(task, train=..., test=...)."""
        everything = task.inputs(np.arange(task.size))
        splits = {
            name: (np.isin(np.arange(task.size), chosen), "true")
            for name, chosen in numbers.items()
        }
        return cls(everything, {"true": task.labels(everything)}, splits)

    def __call__(self, objective: Objective, batch: Batch) -> dict[str, np.ndarray]:
        """{split_loss, split_accuracy} of every split, each (E,) or ()"""
        predicted, losses = objective.predict(batch, list(self.labels.values()))
        self.predicted = (
            predicted  # (E, B) of the last measurement, for those who look at single examples
        )
        row_losses = dict(zip(self.labels, losses, strict=True))
        result = {}
        for name, (mask, which) in self.splits.items():
            count = mask.sum(axis=-1)
            count = np.where(count, count, np.nan)
            hits = (predicted == self.labels[which]) & mask
            result[f"{name}_loss"] = np.where(mask, row_losses[which], 0).sum(axis=-1) / count
            result[f"{name}_accuracy"] = hits.sum(axis=-1) / count
        return result


class Training:
    """A network, or an ensemble, in training: parameters, optimiser, data and the record so far.

    data         [(inputs (S, B), target (B,))] host integers: one entry that all members share, or one per member
    evaluation   what `measure` records
    seeds        one seed, or one per member: they drive dropout masks and the order of minibatches
    batch_size   None: full batch; else minibatches, the last incomplete one of an epoch dropped
    dropout      rate, or one per member
    extra        further numbers to record with every measurement: run -> {name: array}
    """

    def __init__(
        self,
        dev: Device,
        model,
        optimizer,
        data,
        evaluation: Evaluation,
        seeds,
        loss="mse",
        batch_size=None,
        dropout=0.0,
        extra: Callable[["Training"], dict] = lambda run: {},
    ):
        self.dev, self.model, self.optimizer, self.seeds, self.batch_size = (
            dev,
            model,
            optimizer,
            seeds,
            batch_size,
        )
        self.params, self.grads = optimizer.params, optimizer.grads
        self.objective = Objective(dev, model, self.params, loss)
        self.data, self.evaluation, self.dropout, self.extra = (
            list(data),
            evaluation,
            dropout,
            extra,
        )
        check_rate_host(dropout)
        smallest = min(len(target) for _, target in self.data)
        if batch_size is not None and not 1 <= batch_size <= smallest:
            raise InputError(
                f"the batch size must lie between 1 and the {smallest} training inputs, not {batch_size}"
            )
        if model.batchnorm and (batch_size or smallest) < 2:
            raise InputError("BatchNorm needs at least 2 training inputs in a batch")
        self.table = Batch(
            dev,
            [(evaluation.inputs, np.zeros(evaluation.inputs.shape[1], int))],
            model.p,
            model.width,
        )
        self.full_batch = self.make_batch(self.data) if batch_size is None else None
        self.t = 0
        self.history: dict[str, list] = {"step": []}
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # of the epoch at hand, by member

    def make_batch(self, data) -> Batch:
        """Training data [(inputs, target)] of all members as one batch."""
        return Batch(self.dev, data, self.model.p, self.model.width, whole=self.model.batchnorm)

    def batch(self, t: int) -> Batch:
        """The batch of step t = 1, 2, ...: a pure function of (seed, t)."""
        if self.batch_size is None:
            return self.full_batch
        return self.make_batch(
            [self._minibatch(e, int(s), t) for e, s in enumerate(np.atleast_1d(self.seeds))]
        )

    def _minibatch(self, e: int, seed: int, t: int) -> tuple[np.ndarray, np.ndarray]:
        inputs, target = self.data[e if len(self.data) > 1 else 0]
        epoch, i = divmod(t - 1, len(target) // self.batch_size)
        if self._orders.get(e, (None,))[0] != epoch:
            key = np.random.SeedSequence(seed, spawn_key=(STREAMS.index("batches"), epoch))
            self._orders[e] = epoch, np.random.default_rng(key).permutation(len(target))
        pick = self._orders[e][1][i * self.batch_size : (i + 1) * self.batch_size]
        return inputs[:, pick], target[pick]

    def step(self) -> Array:
        """One optimiser step; returns the loss before it, (E,) or ()."""
        t = self.t + 1
        dropout = (mask_keys(self.seeds, t), self.dropout) if np.any(self.dropout) else None
        loss = self.objective.gradient(self.grads, self.batch(t), dropout)
        if (
            self.dev.kind == "cpu" and not np.isfinite(loss).all()
        ):  # on a GPU reading the loss would wait for it
            self._not_finite(t, loss)
        self.optimizer.step(t)
        self.t = t
        return loss

    def measure(self) -> dict[str, np.ndarray]:
        """Append the step and what the evaluation measures to the history; returns the new row."""
        row = {"step": self.t, **self.evaluation(self.objective, self.table)}
        for name, (mask, _) in self.evaluation.splits.items():
            loss = np.where(
                mask.any(axis=-1), row[f"{name}_loss"], 0.0
            )  # nan for an empty split is no accident
            if not np.isfinite(loss).all():
                self._not_finite(self.t, loss)
        for key, value in (row | self.extra(self)).items():
            self.history.setdefault(key, []).append(value)
        return row

    def _not_finite(self, t: int, loss) -> None:
        loss = np.atleast_1d(self.dev.to_host(loss))
        e = int(np.flatnonzero(~np.isfinite(loss))[0])
        member = None if self.params.members is None else e
        where = "the logits (weights and gradients of earlier steps are finite)"
        for kind, arena in (("weight", self.params), ("gradient", self.grads)):
            for name, x in reversed(arena.member(member).items()):
                if not np.isfinite(self.dev.to_host(x)).all():
                    where = f"{kind} {name}"
        raise NonFiniteLoss(
            f"step {t}, member {e}: the loss is {loss[e]}; first tensor that is not finite: {where}",
            e,
        )


def fit(
    run: Training,
    steps: int,
    log_every: int = 10,
    on_log: Callable[[dict], None] = lambda row: None,
    save: Callable[[Training], None] = lambda run: None,
    save_seconds: float = 30.0,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train until step `steps`; True when it got there, False when stop() asked to end early (the
    state is saved).

    Measures at step 0, every log_every steps and at the end; saves every save_seconds and on
    leaving."""
    saved = time.monotonic()
    if not run.history["step"]:
        on_log(run.measure())
    while run.t < steps and not stop():
        run.step()
        if run.t % log_every == 0 or run.t == steps:
            on_log(run.measure())
        if time.monotonic() - saved > save_seconds:
            save(run)
            saved = time.monotonic()
    save(run)
    return run.t >= steps
