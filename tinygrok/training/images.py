"""Training on images."""

import numpy as np

from ..engine.errors import InputError
from ..models.chain import Chain
from .batches import EVERY_ROW, ImageBatch, Labelled
from .loop import DrawnRun


class ImageTraining(DrawnRun):
    """A chain in training: draw gives, and sets hold, (images (n, H, W, C), labels (n,))."""

    model: Chain

    def make_batch(self, data: Labelled, training: bool = False) -> ImageBatch:
        """This rank's rows of what is drawn, or a set to measure, on the device."""
        images, labels = data
        rows = self.world.rows(len(labels)) if training else EVERY_ROW
        if training and self.model.batchnorm and self.world.size > 1:
            raise InputError("BatchNorm needs all rows of a batch: train on one rank")
        return ImageBatch(self.dev, self.model, images, labels, rows, training)
