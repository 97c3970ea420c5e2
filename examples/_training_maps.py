"""The networks of training_maps.py: a cell is a small deep MLP that trains from one (sigma_w^2,
sigma_b^2), at the best of a few learning rates; and what the theory says of it.

In a file of its own, which worker processes can import."""

import functools
import math
from pathlib import Path

import _memory as memory
import numpy as np

from tinygrok.criticality.meanfield import MeanField, critical_line
from tinygrok.engine.device import get_device
from tinygrok.engine.rng import generator
from tinygrok.models.vision import deep_mlp
from tinygrok.tasks import images
from tinygrok.training.batches import IMAGE_SHARD_BYTES, SHARD_IMAGES
from tinygrok.training.images import ImageTraining
from tinygrok.training.loop import NonFiniteLoss, equip

MOST_IMAGES = 10_000  # the first ones, to train on
MEASURED = 1000  # of them, and of the test images, whose accuracy is measured
HOMOGENEOUS = ("identity", "relu", "leaky_relu")  # phi(c x) = c phi(x), c > 0
SIZES = ("activation", "depth", "width", "batch", "steps", "trial", "dtype", "seed")

# -- data and networks -----------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def load(folder):
    """The images of a folder, or digits: the first ones, normalised. A process reads them once."""
    data = images.load(None if folder is None else Path(folder))
    few = data._replace(
        train=data.train[:MOST_IMAGES],
        train_labels=data.train_labels[:MOST_IMAGES],
        test=data.test[:MEASURED],
        test_labels=data.test_labels[:MEASURED],
    )
    return images.normalised(few)


def network(point, data):
    """The chain of a point, for these images."""
    inputs = math.prod(data.train.shape[1:])
    sizes = (inputs, point["width"], point["depth"], data.classes)
    return deep_mlp(*sizes, point["activation"], point["norm"], point["mu"])


def start(point, data, dev, lr):
    """The network of a point before its first step: the first layer has sigma_w = 1."""
    net = network(point, data)
    sigma_w = math.sqrt(point["sw2"])
    sigma_b = math.sqrt(point["sb2"])
    weights = net.init(generator(point["seed"], "init"), sigma_w, sigma_b, first=1.0)
    return by_sgd(net, weights, data, dev, point["seed"], point["batch"], lr)


def by_sgd(net, weights, data, dev, seed, batch, lr, measured=MEASURED):
    """A training of a chain by plain SGD, on random images a step.

    measured   images to train on, and to test, whose accuracy is measured"""
    dev, optimiser = equip(net, seed, weights, dev, "sgd", lr=lr)

    def draw(rng, t):
        pick = rng.integers(0, len(data.train), batch)
        return data.train[pick], data.train_labels[pick]

    sets = {
        "train": (data.train[:measured], data.train_labels[:measured]),
        "test": (data.test[:measured], data.test_labels[:measured]),
    }
    return ImageTraining(dev, net, optimiser, draw, sets, seed)


# -- training --------------------------------------------------------------------------------------


def train(pack, device, folder, **options):
    """What became of the points of a pack.   folder: of the images; None: digits

    options   of get_device"""
    data = load(folder)
    dev = get_device(device, pack[0]["dtype"], **options)
    return [train_one(point, data, dev) for point in pack]


def train_one(point, data, dev):
    """The learning rate of a point, and what the network has learnt with it: None where every rate
    diverged.

    Every rate trains for some steps of trial; the one with the best training accuracy goes on to
    the end, and where that diverges the next best one."""
    runs = []
    for lr in point["lr"]:
        run = start(point, data, dev, lr)
        found = trained(run, point["trial"])
        if found is not None:
            runs.append((found["train_accuracy"], lr, run))
    runs.sort(key=lambda each: (-each[0], each[1]))
    for _, lr, run in runs:
        found = trained(run, point["steps"])
        if found is not None:
            return {"lr": lr} | found
    names = ("lr", "train_accuracy", "test_accuracy", "train_loss", "test_loss")
    return dict.fromkeys(names)


def trained(run, steps):
    """The measurements of a run at a step, as numbers; None where its loss is not finite."""
    try:
        while run.t < steps:
            run.step()
        return {name: float(x) for name, x in run.measurements().items()}
    except NonFiniteLoss:
        return None


# -- theory ----------------------------------------------------------------------------------------


def mean_field(args, norm, mu, sw2, sb2):
    return MeanField(args.activation, sw2, sb2, mu, norm)


def log10_jacobian(args, norm, mu, sw2, sb2):
    """log10 J^{1,L} over a grid, L = depth + 1: how the square of a gradient grows on its way from
    the last pre-activations to the first ones. sw2 (n,), sb2 (m,) -> (m, n)

    The images have mean square 1 and the first layer sigma_w = 1: K^1 = 1 + sigma_b^2."""
    rows = np.asarray(sb2)[:, None]
    case = mean_field(args, norm, mu, np.asarray(sw2), rows)
    with np.errstate(all="ignore"):  # of thousands of layers: infinite, or nan
        _, chi = case.propagate(1.0 + rows, args.depth)
        return np.log10(chi).sum(axis=0)


def critical_curve(args, norm, mu, sb2):
    """(sw2, sb2) of chi_J* = 1; None where that is nowhere, or everywhere."""
    if (mu == 1 and norm != "post") or norm == "batch":
        return None
    K = np.geomspace(1e-3, 1e3, 400)
    line = critical_line(args.activation, K, norm, mu)
    if np.ptp(line[0]) < 1e-9:  # ReLU: chi_J does not depend on K
        return line[0][:2], np.array([sb2[0], sb2[-1]])
    return line


def theory_in_words(activation, norm, mu):
    """What the theory says of a whole map that has no critical line.

    At mu = 1 chi_J - 1 falls as 1/l where a norm divides by a K that grows as l: before the
    activation, and behind it where phi is homogeneous."""
    bounded = norm in ("pre", "batch") or (norm == "act" and activation in HOMOGENEOUS)
    linear = norm == "batch" and activation == "identity"
    if (mu == 1 and bounded) or linear:
        return "critical everywhere"
    return "chaotic everywhere" if norm == "batch" else "critical nowhere"


# -- memory ----------------------------------------------------------------------------------------


def rows_in_work(dev, entries, batch, measured):
    """Images whose activations are there at a time, of blocks whose widest output has so many
    entries: those of a shard a thread; a GPU takes a batch to train on whole."""
    kept = IMAGE_SHARD_BYTES[dev.kind] / (entries * dev.dtype.itemsize)
    at_once = dev.threads * max(kept, SHARD_IMAGES)
    if dev.kind == "cuda":
        return max(batch, min(measured, at_once))
    return min(max(batch, measured), at_once)


def needed(dev, point, data, processes):
    """Parts of the memory of as many cells as train at a time, each with a network a rate."""
    size = network(point, data).size
    rows = rows_in_work(dev, point["width"], point["batch"], MEASURED)
    row = math.prod(data.train.shape[1:]) + 4 * point["depth"] * point["width"]
    shards = dev.threads * point["batch"] / rows
    return {
        "weights": processes * len(point["lr"]) * memory.weights(dev, size, 1, shards),
        "activations": processes * dev.dtype.itemsize * rows * row,
        "images": processes * 2 * data.train.nbytes,
    }
