"""Training on token sequences, with accuracies by position."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..engine.device import Device
from ..engine.rng import generator
from ..models.gpt import GPT
from .batches import EVERY_ROW, TokenBatch
from .loop import DrawnRun, equip


class SequenceData(Protocol):
    """What SequenceTraining.on_task asks of a data set (tasks/in_context.py, tasks/lcg.py).

    positions   input positions that carry loss
    """

    @property
    def positions(self) -> np.ndarray: ...

    def batch(self, count: int, rng: np.random.Generator, step: int) -> np.ndarray:
        """The training batch of a step: `count` sequences (count, T + 1)."""
        ...

    def sets(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """{name: sequences} to be measured."""
        ...


class SequenceTraining(DrawnRun):
    """A decoder in training.

    draw        (generator, step) -> sequences (B, T + 1): the batch of a step
    positions   input positions that carry loss
    sets        {name: sequences}: measured as accuracy and loss by position

    >>> import tinygrok as tg
    >>> data = tg.InContextData.make(5, 4, 8, 0.6, tg.generator(0, "split"))
    >>> net = tg.GPT.in_context(vocab=5, width=16, depth=1, heads=2, context=12)
    >>> run = tg.SequenceTraining.on_task(net, data, batch=16, seed=0, lr=1e-3, weight_decay=0.5)
    >>> history = run.fit(steps=2)
    >>> history["ood_train_accuracy"][-1].shape  # one for each of the 4 examples in context
    (4,)
    """

    model: GPT

    def __init__(
        self, dev: Device, model: GPT, optimizer, draw: Callable, positions, sets, seed: int
    ):
        self.positions = np.asarray(positions)
        super().__init__(dev, model, optimizer, draw, sets, seed)

    @classmethod
    def on_task(
        cls, model: GPT, data: SequenceData, batch=64, seed=0, lr=1e-3, weight_decay=0.1, **options
    ) -> "SequenceTraining":
        """A decoder on `batch` fresh sequences a step; what has one axis does not decay.

        options   weights, device, optimizer (loop.equip), and the optimiser's: betas, schedule, ...
        """
        options |= {"lr": lr, "weight_decay": weight_decay, "no_decay": model.no_decay}
        dev, optimiser = equip(model, seed, **options)

        def draw(rng: np.random.Generator, t: int) -> np.ndarray:
            return data.batch(batch, rng, t)

        sets = data.sets(generator(seed, "probes"))
        return cls(dev, model, optimiser, draw, data.positions, sets, seed)

    def make_batch(self, data: np.ndarray, training: bool = False) -> TokenBatch:
        """This rank's rows of what is drawn, or a set to measure, on the device."""
        rows = self.world.rows(len(data)) if training else EVERY_ROW
        return TokenBatch(self.dev, self.model, data, self.positions, rows, training)
