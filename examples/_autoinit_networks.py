"""The networks of autoinit.py, with the settings that its flags may change, and their first weights
before and after the tuning."""

import functools
import time

import numpy as np

from tinygrok.criticality.autoinit import autoinit
from tinygrok.engine.errors import InputError
from tinygrok.engine.optim import cosine
from tinygrok.engine.rng import generator
from tinygrok.models import vision
from tinygrok.training.images import HE

RELU = {"activation": "relu", "optimizer": "sgd"}
GELU = {"activation": "gelu", "optimizer": "adamw"}
MLP = RELU | {"width": 100, "depth": 50, "lr": [0.01], "steps": 1500, "batch": 128}
TOKENS = GELU | {"width": 64, "depth": 6, "lr": [2e-3], "steps": 400, "batch": 64}
VGG = RELU | {"width": 8, "depth": 0, "lr": [0.02], "steps": 1000, "batch": 64}
VGG_BN = VGG | {"lr": [0.05]}
PRESETS = {"mlp": MLP, "resmlp": TOKENS, "mixer": TOKENS, "vgg": VGG, "vgg_bn": VGG_BN}
# Flags that do nothing with a model.
IDLE = {"mlp": ("patch", "layer_scale"), "resmlp": ("norm",), "mixer": ("norm", "layer_scale")}
IDLE["vgg"] = IDLE["vgg_bn"] = ("depth", "patch", "norm", "mu", "layer_scale")
QUICK = {"steps": 300, "batch": 64, "tune_steps": 60, "seeds": 3}
QUICK_SIZE = {"mlp": {"width": 50, "depth": 20}, "vgg": {"steps": 60}, "vgg_bn": {"steps": 60}}
QUICK_SIZE["resmlp"] = QUICK_SIZE["mixer"] = {"width": 32, "depth": 2, "steps": 100}


def build(args, image, classes):
    """The network that the flags describe, for images of a shape (H, W, C)."""
    H, W, C = image
    if args.model == "mlp":
        size = (H * W * C, args.width, args.depth, classes)
        return vision.deep_mlp(*size, args.activation, args.norm, args.mu or 0.0)
    if args.model.startswith("vgg"):
        return build_vgg(args, image, classes)
    # At least 16 tokens.
    patches = [n for n in (1, 2, 4, 7, 8) if H % n == W % n == 0 and 4 * n <= H]
    sizes = {
        "patch": args.patch or max(patches, default=1),
        "width": args.width,
        "depth": args.depth,
    }
    options = {"activation": args.activation, "mu": 1.0 if args.mu is None else args.mu}
    if args.model == "mixer":
        return vision.mixer(
            image, classes, hidden=(2 * args.width, 2 * args.width), **sizes, **options
        )
    hidden = 4 * args.width
    return vision.resmlp(image, classes, hidden=hidden, scale=args.layer_scale, **sizes, **options)


def build_vgg(args, image, classes):
    channels = 64  # of the first convolution
    if channels % args.width:
        allowed = "VGG's first convolution has 64 channels or a divisor of that"
        raise InputError(f"--width {args.width}: {allowed}")
    options = {"batchnorm": args.model == "vgg_bn", "activation": args.activation}
    return vision.vgg(image, classes, divide=channels // args.width, **options)


def predicted_loss(J, steps, lr, schedule):
    """The Jacobian log loss before every step of a tuning, from the J of the blocks at its start.

    Every block alone, one multiplier a of its weights, J ~ a^2 (ReLU, no residual connections):
    ln J changes by twice the change of ln a, which is -lr dL/d ln a = -2 lr ln J, at most 0.3."""
    logs = np.log(J)
    losses = []
    for t in range(steps):
        losses.append(0.5 * (logs**2).sum())
        logs = logs + 2 * np.clip(-2 * lr * schedule(t + 1) * logs, -0.3, 0.3)
    return losses


class Start:
    """First weights by initialisation for one seed, and the tuning of "off" to "autoinit"."""

    def __init__(self, args, dev, net, data, seed):
        rng = generator(seed, "probes")
        size = min(args.tune_batch, len(data.train))
        x = data.train[rng.choice(len(data.train), size, replace=False)]
        self.tune = functools.partial(autoinit, dev, net, x=x, rng=rng, loss=args.jacobian_loss)
        off = net.init(generator(seed, "init"), args.off * HE, args.sigma_b)
        kaiming = net.init(generator(seed, "init"), HE)
        xavier = net.init(generator(seed, "init"), 1.0, fan="mean")
        began = time.perf_counter()
        steps = {"steps": args.tune_steps, "lr": args.tune_lr, "probes": args.probes}
        steps["schedule"] = cosine(0, args.tune_steps)
        tuned, self.history = self.tune(weights=off, tune=tuple(args.tune), **steps)
        self.seconds = time.perf_counter() - began
        self.weights = {"off": off, "kaiming": kaiming, "xavier": xavier, "autoinit": tuned}

    def jacobians(self, init):
        """(Jacobian loss, J of every block) from many probes."""
        _, history = self.tune(weights=self.weights[init], steps=0, probes=64)
        return history["loss"][0], history["apjn"][0]

    def predicted(self, args):
        """The loss of the tuning in theory; None where blocks do act on each other."""
        alone = (args.model, args.activation, args.norm, args.mu or 0) == ("mlp", "relu", "none", 0)
        if not alone or args.jacobian_loss != "log":
            return None
        J = self.history["apjn"][0]
        return predicted_loss(J, args.tune_steps, args.tune_lr, cosine(0, args.tune_steps))
