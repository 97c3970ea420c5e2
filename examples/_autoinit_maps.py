"""What autoinit_maps.py measures: tunings of ReLU networks in the plane of sigma_w and learning
rate, what the tuning finds with norms and residual connections, and VGG-19 at full width."""

import math
import resource
import sys
import time

import numpy as np
from _autoinit_theory import DIVERGED, outcome, relu_dynamics

from tinygrok.criticality.autoinit import autoinit
from tinygrok.engine.device import get_device
from tinygrok.engine.errors import InputError
from tinygrok.engine.rng import generator
from tinygrok.models import vision
from tinygrok.tasks.images import Images, normalised
from tinygrok.training.images import HE, ImageTraining

LOSSES = ("log", "square")
SIGMAS = (0.25, 8.0)  # ends of the maps' axes
RATES = (0.02, 20.0)
CURVES = (0.05, 3.0, 12.0)  # J of networks whose tuning is shown, with KAPPA: 1 + 2/KAPPA = 9
KAPPA = 0.25
MUS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
FEW_MUS = (0.0, 0.5, 0.9, 1.0)  # with norms
NORMS = {"none": MUS, "pre": FEW_MUS, "batch": FEW_MUS}
# Learning rates. With a norm a block acts on its neighbour: stable is lr < 1/8, not lr < 1/2.
NORM_RATES = {"none": 0.2, "pre": 0.1, "batch": 0.1}
OFF = 2.0  # sigma_w of these networks before the tuning
TUNING = 200  # its steps
RESIDUAL = {"part": "residual", "sigma_w": math.sqrt(2), "lr": 0.1, "steps": TUNING}
REPORTED = 16  # probes with which J is reported
MANY = 256  # inputs with BatchNorm, whose J at few inputs is not that at many
PIXELS = (32, 32, 3)  # of CIFAR-10's images
CLASSES = 10

# -- the sweep -------------------------------------------------------------------------------------


def axes(grid):
    """sigma_w and learning rates of the maps."""
    sigmas = np.geomspace(*SIGMAS, grid)
    rates = np.geomspace(*RATES, grid)
    return [float(f"{x:.6g}") for x in sigmas], [float(f"{x:.6g}") for x in rates]


def packs_of(args):
    """{what: points}: ("map", loss, sigma_w), a row of a map; ("found", norm, mu), one network;
    ("curves",) and ("residual",)."""
    names = ("depth", "width", "inputs", "probes", "seed", "dtype")
    common = {name: getattr(args, name) for name in names}
    tuned = common | {"part": "map", "steps": args.steps}
    sigmas, rates = axes(args.grid)
    packs = {}
    for loss in LOSSES:
        for sigma_w in sigmas:
            row = tuned | {"loss": loss, "sigma_w": sigma_w}
            packs["map", loss, sigma_w] = [row | {"lr": lr} for lr in rates]
    for norm, mus in NORMS.items():
        for mu in FEW_MUS if args.quick else mus:
            kind = {"part": "found", "norm": norm, "mu": mu}
            packs["found", norm, mu] = [common | kind | {"lr": NORM_RATES[norm], "steps": TUNING}]
    packs["residual",] = [common | RESIDUAL]
    packs["curves",] = []
    for loss in LOSSES:
        for J in CURVES:
            start = {"loss": loss, "sigma_w": math.sqrt(2 * J), "lr": KAPPA / (2 * J)}
            theory = relu_dynamics(J, KAPPA, args.steps, loss)
            visible = sum(x < 1e6 for x in theory) - 1  # of a tuning that diverges
            packs["curves",].append(tuned | start | {"steps": max(visible, 1)})
    return packs


# -- its parts -------------------------------------------------------------------------------------


def measure(points, device, **options):
    """The results of a pack of points, which say by "part" what is measured.

    options   of get_device"""
    dev = get_device(device, points[0]["dtype"], **options)
    return [PARTS[point["part"]](dev, point) for point in points]


def network(point, norm="none", mu=0.0):
    """(network, inputs, generator of probes) of a point: `depth` blocks between a first layer and a
    readout of the same width."""
    width = point["width"]
    net = vision.deep_mlp(width, width, point["depth"], width, "relu", norm, mu)
    rng = generator(point["seed"], "probes")
    inputs = MANY if norm == "batch" else point["inputs"]
    return net, rng.standard_normal((inputs, width)), rng


def first_weights(net, point, sigma_w):
    """He's first layer has no ReLU in front, and so J = sigma_w^2: here that of the others."""
    return net.init(generator(point["seed"], "init"), sigma_w, first=sigma_w / math.sqrt(2))


def mapped(dev, point):
    """The curve of ln J while a ReLU network is tuned by plain descent, and what became of it."""
    net, x, rng = network(point)
    weights = first_weights(net, point, point["sigma_w"])
    settings = {name: point[name] for name in ("steps", "lr", "loss", "probes")}
    try:
        with np.errstate(all="ignore"):
            _, history = autoinit(
                dev, net, weights, x, rng, plain=True, tune=("weight",), **settings
            )
    except InputError:  # the loss is not finite any more
        return DIVERGED | {"means": None}
    logs = np.log(history["apjn"])
    means = logs.mean(axis=1).tolist()
    rms = np.sqrt((logs**2).mean(axis=1))
    return outcome(means, rms) | {"means": means}


def found(dev, point):
    """J of every block before and after the tuning, and sigma_w of the hidden blocks, with a norm
    and residual connections of strength mu."""
    net, x, rng = network(point, point["norm"], point["mu"])
    weights = first_weights(net, point, OFF)
    settings = {name: point[name] for name in ("steps", "lr", "probes")}
    tuned, _ = autoinit(dev, net, weights, x, rng, tune=("weight",), **settings)
    sigmas = []
    for i in range(point["depth"]):
        W = tuned[f"hidden.{i}.weight"]
        sigmas.append(math.sqrt(len(W) * (W**2).mean()))
    # Many probes: noise is not the tuning's.
    ends = {}
    for name, w in (("before", weights), ("after", tuned)):
        _, end = autoinit(dev, net, w, x, rng, steps=0, probes=REPORTED)
        ends[f"J_{name}"] = end["apjn"][0]
        ends[f"loss_{name}"] = end["loss"][0]
    return ends | {"sigma_w": sigmas}


def residual(dev, point):
    """Mean J of the hidden blocks while one with mu = 1 is tuned by plain descent."""
    net, x, rng = network(point, "none", 1.0)
    weights = first_weights(net, point, point["sigma_w"])
    settings = {name: point[name] for name in ("steps", "lr", "probes")}
    _, history = autoinit(dev, net, weights, x, rng, plain=True, tune=("weight",), **settings)
    return {"J": np.array(history["apjn"])[:, 1:-1].mean(axis=1)}


PARTS = {"map": mapped, "found": found, "residual": residual}

# -- VGG-19 ----------------------------------------------------------------------------------------


def noise(seed, count):
    """Images of the size of CIFAR-10's, of Gaussian noise, with labels at random."""
    rng = generator(seed, "batches")
    x = rng.standard_normal((count, *PIXELS))
    labels = rng.integers(0, CLASSES, count)
    labels[0] = CLASSES - 1  # the number of classes is that of the largest label
    return Images(x, labels, x[:1], labels[:1])


def vgg19(dev, net, images, batch, steps, seed):
    """VGG-19 without BatchNorm at full width from Kaiming's weights: a few steps of the tuning and
    of training, with seconds a step and the memory of the process."""
    data = normalised(images)
    weights = net.init(generator(seed, "init"), HE)
    began = time.perf_counter()
    # A block has one multiplier: in a ReLU network without biases a step at lr 1/4 is all it takes.
    settings = {"steps": steps, "lr": 0.25, "probes": 1, "tune": ("weight",)}
    tuned, history = autoinit(
        dev, net, weights, data.train[:batch], generator(seed, "probes"), **settings
    )
    tuning = (time.perf_counter() - began) / (steps + 1)
    how = {"lr": 1e-3, "optimizer": "sgd", "momentum": 0.9, "clip": 1.0}
    run = ImageTraining.on_task(net, images, batch, seed, weights=tuned, device=dev, **how)
    losses = []
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        losses.append(float(run.step()))
        seconds.append(time.perf_counter() - began)
    return {
        "parameters": net.size,
        "images_a_step": batch,
        "J_before": history["apjn"][0],
        "J_after": history["apjn"][-1],
        "seconds_a_tuning_step": tuning,
        "seconds_a_training_step": min(seconds),
        "losses": losses,
        "peak_gigabytes": peak(dev) / 1e9,
    }


def peak(dev) -> int:
    """Bytes: on a GPU of its pool, else the most that this process ever had."""
    if dev.kind == "cuda":
        return dev.xp.get_default_memory_pool().total_bytes()
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
