"""Training on tables of a task: which inputs are measured, and the run of a network or an
ensemble."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..engine.border import integer, integers
from ..engine.device import Array, Device
from ..engine.errors import InputError
from ..engine.optim import Optimizer
from ..engine.rng import STREAMS, generator, mask_keys
from ..models.mlp import TwoLayerNet
from ..ops.dropout import check_rate_host
from ..probes.fourier import mean_known, neuron_ipr
from ..tasks.modular import ModularTask, TaskError
from .batches import Batch, Labelled, TableBatch, TableNet
from .loop import Run, equip
from .objective import Objective


class Evaluation:
    """Which inputs are measured, and how they are grouped.

    inputs (S, B)   shared by all members, usually the whole table
    labels {name: (B,) or (E, B)}   label sets, for instance as given in training, and true
    splits {name: (mask (B,) or (E, B), label set)}   accuracy and mean loss over the masked inputs;
                    nan for none
    predicted (E, B) or (B,)   of the last measurement, for those who look at single examples
    """

    def __init__(
        self,
        inputs: np.ndarray,
        labels: dict[str, np.ndarray],
        splits: dict[str, tuple[np.ndarray, str]],
    ):
        inputs = integers(inputs, "inputs")
        order = np.argsort(inputs[0], kind="stable")  # as TableBatch sorts
        self.inputs = inputs[:, order]
        known = {name: integers(x, f"labels {name!r}") for name, x in labels.items()}
        self.labels = {name: x[..., order] for name, x in known.items()}
        self.splits = {name: (mask[..., order], which) for name, (mask, which) in splits.items()}
        self.predicted: np.ndarray | None = None

    @classmethod
    def of_task(cls, task: ModularTask, **numbers: np.ndarray) -> "Evaluation":
        """Splits of a task by the numbers of their inputs: of_task(task, train=..., test=...)."""
        every = np.arange(task.size)
        inputs = task.inputs(every)
        splits = {}
        for name, chosen in numbers.items():
            chosen = integers(chosen, f"numbers of {name} inputs", 0, task.size - 1)
            splits[name] = (np.isin(every, chosen), "true")
        return cls(inputs, {"true": task.labels(inputs)}, splits)

    def __call__(self, objective: Objective, batch: Batch) -> dict[str, np.ndarray]:
        """{split_loss, split_accuracy} of every split, each (E,) or ()"""
        predicted, losses = objective.predict(batch, list(self.labels.values()))
        row_losses = dict(zip(self.labels, losses, strict=True))
        result = {}
        for name, (mask, which) in self.splits.items():
            count = mask.sum(axis=-1)
            count = np.where(count, count, np.nan)
            hits = (predicted == self.labels[which]) & mask
            total = np.where(mask, row_losses[which], 0).sum(axis=-1)
            result[f"{name}_loss"] = total / count
            result[f"{name}_accuracy"] = hits.sum(axis=-1) / count
        self.predicted = predicted
        return result


class Training(Run):
    """A network, or an ensemble, in training on tables.

    data         [(inputs (S, B), target (B,))] host integers: one entry that all members share, or
                 one per member
    evaluation   what is measured
    seeds        one seed, or one per member: they drive dropout masks and the order of minibatches
    batch_size   None: full batch; else minibatches, the last incomplete one of an epoch dropped
    dropout      rate, or one per member
    extra        further numbers to record with every measurement: run -> {name: array}, such as
                 mean_ipr; it may also be set later

    >>> import tinygrok as tg
    >>> net = tg.TwoLayerNet(p=11, width=60)
    >>> run = tg.Training.on_task(net, tg.addition(11), fraction=0.8, seed=0)
    >>> history = run.fit(steps=100)  # or: run.step(), run.measure()
    >>> history["step"][:3], float(history["train_accuracy"][-1])
    ([0, 10, 20], 1.0)
    """

    model: TableNet
    order: np.ndarray | None = None  # along which neurons are waves; None: not known

    def __init__(
        self,
        dev: Device,
        model: TableNet,
        optimizer: Optimizer,
        data: Sequence[Labelled],
        evaluation: Evaluation,
        seeds: int | Sequence[int],
        loss: str = "mse",
        batch_size: int | None = None,
        dropout: float | Sequence[float] = 0.0,
        extra: Callable[["Training"], dict] = lambda run: {},
    ):
        super().__init__(dev, model, optimizer, loss)
        self.data = [(np.asarray(inputs), np.asarray(target)) for inputs, target in data]
        self.evaluation = evaluation
        self.seeds = seeds
        self.batch_size = batch_size
        self.dropout = dropout
        self.extra = extra
        self.first = self.params.to_host() if self.params.members is None else {}  # weights
        check_rate_host(dropout)
        smallest = min(len(target) for _, target in self.data)
        if batch_size is not None:  # at most the training inputs
            self.batch_size = integer(batch_size, "the batch size", 1, smallest)
        if model.batchnorm and (batch_size or smallest) < 2:
            raise InputError("BatchNorm needs at least 2 training inputs in a batch")
        for name, labels in evaluation.labels.items():
            integers(labels, f"labels {name!r}", 0, model.classes - 1)
        unlabelled = np.zeros(evaluation.inputs.shape[1], int)
        self.table = TableBatch(dev, model, [(evaluation.inputs, unlabelled)])
        self.full_batch = self.make_batch(self.data) if batch_size is None else None
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # member: (epoch, its order)

    @classmethod
    def on_task(
        cls,
        model: TableNet,
        task: ModularTask,
        fraction: float = 0.5,
        seed: int = 0,
        *,
        lr: float = 0.01,
        weight_decay: float = 5.0,
        loss: str = "mse",
        batch_size: int | None = None,
        dropout: float = 0.0,
        **options,
    ) -> "Training":
        """One network on a fraction of a task's table; the rest is the test set.

        options   weights, device, optimizer (loop.equip), and the optimiser's: betas, schedule, ...

        Raises InputError for a fraction or a batch size that the table does not allow."""
        train, test = task.split(fraction, generator(seed, "split"))
        dev, optimiser = equip(model, seed, lr=lr, weight_decay=weight_decay, **options)
        inputs = task.inputs(train)
        data = [(inputs, task.labels(inputs))]
        evaluation = Evaluation.of_task(task, train=train, test=test)
        run = cls(dev, model, optimiser, data, evaluation, seed, loss, batch_size, dropout)
        with suppress(TaskError):
            order = task.wave_order
            run.order = np.arange(task.p) if order is None else order
        return run

    def make_batch(self, data: Sequence[Labelled]) -> TableBatch:
        """Training data [(inputs, target)] of all members as one batch."""
        return TableBatch(self.dev, self.model, data, whole=self.model.batchnorm)

    def batch(self, t: int) -> TableBatch:
        """The batch of step t = 1, 2, ...: a pure function of (seed, t)."""
        if self.full_batch is not None:
            return self.full_batch
        seeds = np.atleast_1d(self.seeds)
        members = [self._minibatch(e, int(seed), t) for e, seed in enumerate(seeds)]
        return self.make_batch(members)

    def _minibatch(self, e: int, seed: int, t: int) -> Labelled:
        inputs, target = self.data[e if len(self.data) > 1 else 0]
        size = self.batch_size or len(target)
        epoch, i = divmod(t - 1, len(target) // size)
        known, order = self._orders.get(e, (None, target))
        if known != epoch:
            key = np.random.SeedSequence(seed, spawn_key=(STREAMS.index("batches"), epoch))
            order = np.random.default_rng(key).permutation(len(target))
            self._orders[e] = (epoch, order)
        pick = order[i * size : (i + 1) * size]
        return inputs[:, pick], target[pick]

    def gradient(self, t: int) -> Array:
        """Write the gradient of step t into grads; returns the loss, (E,) or ()."""
        dropout = None
        if np.any(self.dropout):
            dropout = (mask_keys(self.seeds, t), self.dropout)
        return self.objective.gradient(self.grads, self.batch(t), dropout)

    def measurements(self) -> dict:
        """What the evaluation measures, and the extra numbers."""
        row = self.evaluation(self.objective, self.table)
        for name, (mask, _) in self.evaluation.splits.items():
            loss = np.where(mask.any(axis=-1), row[f"{name}_loss"], 0.0)  # an empty split has nan
            self.check(self.t, loss)
        return row | self.extra(self)

    def figure(self, path: Path) -> None:
        """Losses, accuracies, mean IPR if it was recorded, learned neurons, and all of them at the
        start and now.

        Raises InputError for an ensemble, and for another network than TwoLayerNet."""
        if self.params.members is not None:
            raise InputError("the figure shows one network, not an ensemble")
        if type(self.model) is not TwoLayerNet:
            raise InputError(f"the figure shows a two-layer network, not {self.model!r}")
        from ..plots import modular_polynomials

        loss = f"{self.objective.loss.replace('_', '-')} loss"
        ends = (self.first, self.params.to_host())
        modular_polynomials.grokking(self.history, *ends, self.order, loss, path)


def mean_ipr(run: Training) -> dict[str, float]:
    """{"ipr_mean": mean IPR of the neurons of one network}, a choice for `extra`; nothing where no
    order is known along which they are waves.

    >>> import tinygrok as tg
    >>> run = tg.Training.on_task(tg.TwoLayerNet(p=11, width=60), tg.addition(11))
    >>> run.extra = mean_ipr
    >>> history = run.fit(steps=100)
    >>> bool(history["ipr_mean"][-1] > history["ipr_mean"][0])
    True
    """
    if run.order is None:
        return {}
    return {"ipr_mean": mean_known(neuron_ipr(run.params.to_host(), run.order))}
