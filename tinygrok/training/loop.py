"""A run: parameters, optimiser, step, measurements and the record so far; and the loop around it.

A run is a pure function of its configuration and seed: weights, split and dropout masks come from
named streams (engine/rng.py), batches from (seed, step). So a checkpoint needs arrays and a step
number, no more.
"""

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.border import integer
from ..engine.device import Array, Device, get_device
from ..engine.errors import InputError
from ..engine.optim import OPTIMIZERS, AdamW, Optimizer
from ..engine.params import Arena
from ..engine.rng import STREAMS, generator
from ..models.protocol import Model
from .batches import DrawnBatch
from .objective import Objective, quiet
from .parallel import world
from .progress import Interrupt


def equip(
    model: Model, seed: int, weights: dict | None = None, device="auto", optimizer=AdamW, **options
) -> tuple[Device, Optimizer]:
    """(device, optimiser) of one network, as every on_task begins.

    weights     first ones, on the host; None: drawn from the seed
    device      a Device, or a name for get_device
    optimizer   its class, or its name in OPTIMIZERS (engine.optim)
    options     of the optimiser: lr, weight_decay, betas, schedule, clip, ...
    """
    weights = weights or model.init(generator(seed, "init"))
    dev = device if isinstance(device, Device) else get_device(device)
    params = Arena(dev, model.shapes)
    params.load({name: weights[name] for name in model.shapes})
    grads = Arena(dev, model.shapes)
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise InputError(f"unknown optimizer {optimizer!r}: choose {', '.join(OPTIMIZERS)}")
        optimizer = OPTIMIZERS[optimizer]
    return dev, optimizer(dev, params, grads, **options)


class NonFiniteLoss(ArithmeticError):
    """Training stopped at a loss that is not finite; names step, member (also in .member) and
    tensor."""

    def __init__(self, message: str, member: int = 0):
        super().__init__(message)
        self.member = member


class Run:
    """A network, or an ensemble, in training.

    t         the step reached
    history   {"step": [...], quantity: [...]}: an entry for every measurement
    whole     False from the beginning of a step to its end: a run left in between cannot go on
    hyperparameters   [[step, {name: value}], ...]: what the optimiser used from a step on

    A kind of run says what the gradient of a step is, what is measured, and what its figure shows.
    """

    def __init__(self, dev: Device, model: Model, optimizer: Optimizer, loss: str):
        self.dev = dev
        self.model = model
        self.optimizer = optimizer
        self.params = optimizer.params
        self.grads = optimizer.grads
        self.objective = Objective(dev, model, self.params, loss)
        self.t = 0
        self.whole = True
        self.hyperparameters: list[list] = []
        self.history: dict[str, list] = {"step": []}

    def gradient(self, t: int) -> Array:
        """Write the gradient of step t = 1, 2, ... into grads; returns the loss, (E,) or ()."""
        raise NotImplementedError

    def measurements(self) -> dict:
        """{quantity: number or array} of the weights as they are."""
        raise NotImplementedError

    def figure(self, path: Path) -> None:
        """Draw the figure of this kind of run."""
        raise NotImplementedError

    def step(self) -> Array:
        """One optimiser step; returns the loss before it, (E,) or ().

        Raises InputError where an earlier step was begun and not finished."""
        t = self.t + 1
        if not self.whole:
            cure = "load a checkpoint into the run, or build it anew"
            raise InputError(f"step {t} was left half done, by an interrupt or an error: {cure}")
        self.note_hyperparameters()
        self.whole = False
        loss = self.gradient(t)  # moves the running statistics of BatchNorm
        if self.dev.kind == "cpu":  # on a GPU reading the loss would wait for it
            self.check(t, loss)
        self.optimizer.step(t)
        self.t = t
        self.whole = True
        return loss

    def note_hyperparameters(self) -> list[list]:
        """Record those of the optimiser if they were changed; returns the record."""
        now = self.optimizer.hyperparameters()
        if not self.hyperparameters or self.hyperparameters[-1][1] != now:
            self.hyperparameters.append([self.t + 1, now])
        return self.hyperparameters

    def measure(self) -> dict:
        """Append the step and the measurements to the history; returns the new row."""
        row = {"step": self.t, **self.measurements()}
        for name, value in row.items():
            self.history.setdefault(name, []).append(value)
        return row

    def fit(
        self,
        steps: int,
        log_every: int = 10,
        on_log: Callable[[dict], None] = lambda row: None,
        save: Callable[[Any], None] = lambda run: None,
        save_seconds: float = 30.0,
        stop: Callable[[], bool] = lambda: False,
        on_step: Callable[[Any], None] = lambda run: None,
    ) -> dict[str, list]:
        """Train until step `steps`, or until stop() asks to end; returns the history.

        Measures at step 0, every log_every steps and at the end, and hands the row to on_log. Calls
        save(run) every save_seconds and on leaving, by an error or an interrupt too. Ctrl-C waits
        for the end of a step and its measurement (a second one does not); fit again goes on.
        on_step(run) is called at the beginning, where an interrupt may have come before it, and
        after every step."""
        steps = integer(steps, "the number of steps", 0)
        log_every = integer(log_every, "the steps between measurements", 1)

        def record() -> None:
            measured = self.history["step"]
            due = not measured or self.t % log_every == 0 or self.t == steps
            if due and measured[-1:] != [self.t]:
                on_log(self.measure())

        saved = time.monotonic()
        with Interrupt() as interrupt:
            try:
                record()
                on_step(self)
                while self.t < steps and not stop():
                    self.step()
                    record()
                    on_step(self)
                    interrupt.pass_on()
                    if time.monotonic() - saved > save_seconds:
                        save(self)
                        saved = time.monotonic()
            finally:
                if self.whole:
                    save(self)
        interrupt.pass_on()
        return self.history

    def plot(self, path: str | Path) -> None:
        """Draw what was measured (if nothing: now), as a PNG. InputError without matplotlib."""
        if importlib.util.find_spec("matplotlib") is None:
            raise InputError(
                "no figure: matplotlib is not installed (pip install 'tinygrok[plot]')"
            )
        if not self.history["step"]:
            self.measure()
        self.figure(Path(path))

    def check(self, t: int, loss: Array, name: str = "the loss") -> None:
        """Raise NonFiniteLoss unless the loss, (E,) or (), is finite."""
        losses = np.atleast_1d(self.dev.to_host(loss))
        finite = np.isfinite(losses)
        if finite.all():
            return
        self.whole = False  # nothing to save, nothing to go on from
        e = int(np.flatnonzero(~finite)[0])
        where = self._first_not_finite(None if self.params.members is None else e)
        message = f"step {t}, member {e}: {name} is {losses[e]}"
        raise NonFiniteLoss(f"{message}; first tensor that is not finite: {where}", e)

    def _first_not_finite(self, e: int | None) -> str:
        """The first tensor of member e, as the loss depends on them, that is not finite."""
        where = "the logits (weights and gradients of earlier steps are finite)"
        for kind, arena in (("weight", self.params), ("gradient", self.grads)):
            for name, x in reversed(arena.member(e).items()):
                if not np.isfinite(self.dev.to_host(x)).all():
                    where = f"{kind} {name}"
        return where


class DrawnRun(Run):
    """A network that trains on batches drawn anew for every step, by one or several ranks.

    draw    (generator, step) -> the data of a training batch
    sets    {name: data}: measured as accuracy and loss, by position where a row has several labels
    seed    drives the batches: that of step t is a pure function of (seed, t)
    extra   (run, {set: predictions of this measurement}) -> further numbers for the history; none
            unless it is set
    """

    def __init__(self, dev: Device, model: Model, optimizer, draw: Callable, sets: dict, seed: int):
        super().__init__(dev, model, optimizer, "cross_entropy")
        self.draw = draw
        self.seed = seed
        self.extra: Callable[[Any, dict], dict] = lambda run, predicted: {}
        self.sets = {name: self.make_batch(data) for name, data in sets.items()}
        self.world = world()
        self.world.join(dev)

    def make_batch(self, data, training: bool = False) -> DrawnBatch:
        """This rank's rows of what is drawn, or a set to measure, on the device."""
        raise NotImplementedError

    def batch(self, t: int) -> DrawnBatch:
        """The batch of step t = 1, 2, ..."""
        key = np.random.SeedSequence(self.seed, spawn_key=(STREAMS.index("batches"), t))
        return self.make_batch(self.draw(np.random.default_rng(key), t), training=True)

    def gradient(self, t: int) -> Array:
        """Write the gradient of step t, summed over the ranks, into grads; returns the loss."""
        loss = self.objective.gradient(self.grads, self.batch(t))
        self.world.sum(self.grads.flat, loss)
        return loss

    def predict(self, batch: DrawnBatch) -> tuple[np.ndarray, np.ndarray]:
        """Predicted labels and losses of a batch, both of the shape of its targets."""
        dev = self.dev

        @quiet()
        def measure(shard) -> tuple[np.ndarray, np.ndarray]:
            z = self.objective.logits(shard)
            predicted = dev.to_host(z.argmax(axis=-1))
            losses, _ = self.objective.row_loss(dev, z, shard.target, out=z)
            return predicted, dev.to_host(losses)

        parts = dev.map(measure, batch.shards())
        shape = batch.targets.shape
        predicted = np.concatenate([part for part, _ in parts])
        losses = np.concatenate([part for _, part in parts])
        return predicted.reshape(shape), losses.reshape(shape)

    def measurements(self) -> dict:
        """Accuracy and loss of every set, and the extra numbers."""
        row: dict = {}
        everything = {}
        for name, batch in self.sets.items():
            predicted, losses = self.predict(batch)
            self.check(self.t, losses.max(), f"the loss on {name}")
            everything[name] = predicted
            row[f"{name}_accuracy"] = (predicted == batch.targets).mean(axis=0)
            row[f"{name}_loss"] = losses.mean(axis=0)
        return row | self.extra(self, everything)

    def figure(self, path: Path) -> None:
        """Accuracy and loss of every set against steps, and by position."""
        from ..plots import style

        style.sets(self.history, list(self.sets), path)
