"""Small runs and files that several tests share."""

import json
import struct

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
    task = addition(p, terms=terms)
    ensemble = isinstance(seeds, list | tuple)
    members = list(seeds) if ensemble else [seeds]
    net = TwoLayerNet(p, width, terms, batchnorm=batchnorm)
    params, grads = (Arena(dev, net.shapes, len(members) if ensemble else None) for _ in range(2))
    for e, seed in enumerate(members):
        params.load(net.init(generator(seed, "init")), e if ensemble else None)
    data, masks = [], []
    for seed, fraction in zip(members, fractions or [0.5] * len(members), strict=True):
        numbers, _ = task.split(fraction, generator(seed if own_split else 0, "split"))
        inputs = task.inputs(numbers)
        data.append((inputs, task.labels(inputs)))
        masks.append(np.isin(np.arange(task.size), numbers))
    everything = task.inputs(np.arange(task.size))
    mask = np.stack(masks) if ensemble else masks[0]
    splits = {"train": (mask, "true"), "test": (~mask, "true")}
    evaluation = Evaluation(everything, {"true": task.labels(everything)}, splits)
    optimizer = AdamW(dev, params, grads, lr=lr, weight_decay=decay)
    return Training(dev, net, optimizer, data, evaluation, seeds, loss, batch_size, dropout)


def safetensors(path, arrays, kind="F32"):
    """A .safetensors file by hand, in float32, float16 or bfloat16."""
    header = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, x in arrays.items():
        data = np.ascontiguousarray(x, "<f2" if kind == "F16" else "<f4")
        if kind == "BF16":
            data = (data.view("<u4") >> 16).astype("<u2")
        place = [len(body), len(body) + data.nbytes]
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": place}
        body += data.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
