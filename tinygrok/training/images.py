"""Training on images."""

import math

import numpy as np

from ..engine.errors import InputError
from ..engine.rng import generator
from ..models.chain import Chain
from ..tasks.images import Images, augment, normalised
from .batches import EVERY_ROW, ImageBatch, Labelled
from .loop import DrawnRun, equip

HE = math.sqrt(2)  # sigma_w of ReLU networks
MEASURED = 2000  # training images, at most, whose accuracy is measured


class ImageTraining(DrawnRun):
    """A chain in training: draw gives, and sets hold, (images (n, H, W, C), labels (n,)).

    >>> import tinygrok as tg
    >>> labels = np.arange(40) % 2
    >>> stripes = np.where(labels[:, None, None] == 1, np.eye(4), 1 - np.eye(4))[..., None]
    >>> images = Images(stripes[:30], labels[:30], stripes[30:], labels[30:])
    >>> net = tg.deep_mlp(inputs=16, width=20, depth=2, classes=2)
    >>> run = tg.ImageTraining.on_task(net, images, batch=16, seed=0, lr=1e-2)
    >>> float(run.fit(steps=20)["test_accuracy"][-1])
    1.0
    """

    model: Chain

    @classmethod
    def on_task(
        cls,
        model: Chain,
        images: Images,
        batch: int = 64,
        seed: int = 0,
        *,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        shifts: int = 0,
        weights: dict[str, np.ndarray] | None = None,
        **options,
    ) -> "ImageTraining":
        """A chain on `batch` random training images a step, normalised; what has one axis does not
        decay. Measured are the first 2000 training images and the test images.

        shifts    pixels by which images are moved at random, and mirrored; 0: they stay as they are
        weights   first ones, and buffers, on the host; None: He's, drawn from the seed
        options   device, optimizer (loop.equip), and the optimiser's: betas, momentum, clip, ...
        """
        weights = weights or model.init(generator(seed, "init"), HE)
        options |= {"lr": lr, "weight_decay": weight_decay, "no_decay": model.no_decay}
        dev, optimiser = equip(model, seed, weights, **options)
        data = normalised(images)

        def draw(rng: np.random.Generator, t: int) -> Labelled:
            pick = rng.integers(0, len(data.train), batch)
            x = data.train[pick]
            if shifts:
                x = augment(rng, x, shifts)
            return x, data.train_labels[pick]

        train = (data.train[:MEASURED], data.train_labels[:MEASURED])
        test = (data.test, data.test_labels)
        run = cls(dev, model, optimiser, draw, {"train": train, "test": test}, seed)
        buffers = {name: weights[name] for name in model.buffers if name in weights}
        run.objective.buffers.load(model.init_buffers() | buffers)
        return run

    def make_batch(self, data: Labelled, training: bool = False) -> ImageBatch:
        """This rank's rows of what is drawn, or a set to measure, on the device."""
        rows = self.world.rows(len(data[1])) if training else EVERY_ROW
        if training and self.model.batchnorm and self.world.size > 1:
            raise InputError("BatchNorm needs all rows of a batch: train on one rank")
        return ImageBatch(self.dev, self.model, data, rows, training)
