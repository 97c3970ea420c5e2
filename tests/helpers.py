"""Small runs that several tests share."""

import numpy as np

from tinygrok.engine.optim import AdamW
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.tasks.modular import addition
from tinygrok.training.tables import Evaluation, Training


def small_run(
    dev,
    p=11,
    width=12,
    seeds=0,
    dropout=0.0,
    batch_size=None,
    loss="mse",
    terms=2,
    lr=0.01,
    decay=1.0,
    own_split=False,
    fractions=None,
    batchnorm=False,
):
    """A training run on addition; seeds of several members make an ensemble, with own splits and
    data fractions."""
    task = addition(p, (1,) * terms)
    members = list(seeds) if isinstance(seeds, list | tuple) else None
    net = TwoLayerNet(
        p, width, terms, "square" if terms == 2 else f"power{terms}", batchnorm=batchnorm
    )
    params, grads = (Arena(dev, net.shapes, len(members) if members else None) for _ in range(2))
    for e in range(len(members)) if members else (None,):
        params.load(net.init(generator(seeds if e is None else members[e], "init")), e)
    fractions = fractions or [0.5] * len(members or [0])
    data, masks = [], []
    for seed, fraction in zip(members or [seeds], fractions, strict=True):
        train = task.inputs(task.split(fraction, generator(seed if own_split else 0, "split"))[0])
        data.append((train, task.labels(train)))
        masks.append(np.isin(np.arange(task.size), np.ravel_multi_index(train, (p,) * terms)))
    everything = task.inputs(np.arange(task.size))
    mask = np.stack(masks) if members else masks[0]
    splits = {"train": (mask, "true"), "test": (~mask, "true")}
    evaluation = Evaluation(everything, {"true": task.labels(everything)}, splits)
    optimizer = AdamW(dev, params, grads, lr=lr, weight_decay=decay)
    return Training(dev, net, optimizer, data, evaluation, seeds, loss, batch_size, dropout)
