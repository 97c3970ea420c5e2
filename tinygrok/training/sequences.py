"""Training on token sequences, with accuracies by position."""

from collections.abc import Callable

import numpy as np

from ..engine.device import Device
from ..models.gpt import GPT
from .batches import EVERY_ROW, TokenBatch
from .loop import DrawnRun


class SequenceTraining(DrawnRun):
    """A decoder in training.

    draw        generator -> sequences (B, T + 1): the batch of a step
    positions   input positions that carry loss
    sets        {name: sequences}: measured as accuracy and loss by position
    extra       (run, {set: predictions (B, Tq) of this measurement}) -> further numbers
    """

    model: GPT

    def __init__(
        self,
        dev: Device,
        model: GPT,
        optimizer,
        draw: Callable,
        positions,
        sets: dict[str, np.ndarray],
        seed: int,
        extra: Callable[..., dict] = lambda run, predicted: {},
    ):
        self.positions = np.asarray(positions)
        super().__init__(dev, model, optimizer, draw, sets, seed, extra)

    def make_batch(self, data: np.ndarray, training: bool = False) -> TokenBatch:
        """This rank's rows of what is drawn, or a set to measure, on the device."""
        rows = self.world.rows(len(data)) if training else EVERY_ROW
        return TokenBatch(self.dev, self.model, data, self.positions, rows, training)
