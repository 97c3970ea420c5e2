"""The networks of autoinit.py, with the settings that its flags may change, and their first weights
before and after the tuning."""

import argparse
import functools
import time

from _autoinit_theory import predicted_loss

from tinygrok.criticality.autoinit import autoinit
from tinygrok.engine.errors import InputError
from tinygrok.engine.optim import cosine
from tinygrok.engine.rng import generator
from tinygrok.models import vision
from tinygrok.models.chain import Chain
from tinygrok.training.images import HE

RELU = {"activation": "relu", "optimizer": "sgd"}
GELU = {"activation": "gelu", "optimizer": "adamw"}
MLP = RELU | {"width": 100, "depth": 50, "lr": [0.01], "steps": 1500, "batch": 128}
TOKENS = GELU | {"width": 64, "depth": 6, "lr": [2e-3], "steps": 400, "batch": 64}
VGG = RELU | {"width": 8, "depth": 0, "lr": [0.02], "steps": 1000, "batch": 64}
VGG_BN = VGG | {"lr": [0.05]}
SEVERAL = {"optimizer": "sgd", "lr": [0.03, 0.1], "clip": 1.0, "steps": 150, "batch": 32}
SEVERAL |= {"seeds": 5, "measure_every": 25, "tune_lr": 0.2, "tune_batch": 16, "probes": 1}
SEVERAL |= {"inits": ["kaiming", "xavier", "autoinit"]}
PRESETS = {"several": SEVERAL, "mlp": MLP, "patchwork": MLP, "resmlp": TOKENS, "mixer": TOKENS}
PRESETS |= {"vgg": VGG, "vgg_bn": VGG_BN}

# The networks that are compared by default. He's formula is made for the first.
DEEP = {"model": "mlp", "activation": "relu", "mu": 0.0, "width": 64, "depth": 24}
COMPARED = {
    "relu": DEEP,
    "gelu": DEEP | {"activation": "gelu"},
    "residual": DEEP | {"mu": 0.7},
    "patchwork": DEEP | {"model": "patchwork"},
    "vgg": DEEP | {"model": "vgg", "width": 8, "depth": 0},
}
TITLES = {
    "relu": "ReLU",
    "gelu": "GELU",
    "residual": "ReLU, $\\mu$ = 0.7",
    "patchwork": "patchwork",
    "vgg": "VGG, no BatchNorm",
}

# Flags that do nothing with a model.
IDLE = {"mlp": ("patch", "layer_scale"), "resmlp": ("norm",), "mixer": ("norm", "layer_scale")}
IDLE["vgg"] = IDLE["vgg_bn"] = ("depth", "patch", "norm", "mu", "layer_scale")
IDLE["patchwork"] = ("activation", "patch", "norm", "mu", "layer_scale")
IDLE["several"] = (*IDLE["patchwork"], "width", "depth")
QUICK = {"steps": 300, "batch": 64, "tune_steps": 60, "seeds": 3}
QUICK_SIZE = {"mlp": {"width": 50, "depth": 20}, "vgg": {"steps": 60}, "vgg_bn": {"steps": 60}}
QUICK_SIZE["patchwork"] = QUICK_SIZE["mlp"]
QUICK_SIZE["resmlp"] = QUICK_SIZE["mixer"] = {"width": 32, "depth": 2, "steps": 100}
QUICK_SIZE["several"] = {"steps": 60, "batch": 32, "lr": [0.03], "seeds": 2, "measure_every": 20}


def networks_of(args):
    """{name: settings} of the networks that the flags ask for; the name of a single one is ""."""
    if args.model != "several":
        return {"": args}
    return {name: argparse.Namespace(**vars(args) | own) for name, own in COMPARED.items()}


def build(args, image, classes):
    """The network that settings describe, for images of a shape (H, W, C)."""
    H, W, C = image
    size = (H * W * C, args.width, args.depth, classes)
    if args.model == "mlp":
        return vision.deep_mlp(*size, args.activation, args.norm, args.mu or 0.0)
    if args.model == "patchwork":
        return patchwork(*size)
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


def patchwork(inputs, width, depth, classes):
    """A deep MLP for which there is no formula. Its blocks are in turn

    W gelu(h) + b;   W erf(LN(h)) + b + h/2;   W LN(gelu(h)) + b;   W relu(h) + b + 0.8 h"""

    def block(i):
        name = f"hidden.{i}"
        linear = ("linear", name, width, width)
        norm = ("layernorm", f"{name}.norm", width)
        kinds = (
            (("act", "gelu"), linear),
            (("residual", name, 0.5, (norm, ("act", "erf"), linear)),),
            (("act", "gelu"), norm, linear),
            (("residual", name, 0.8, (("act", "relu"), linear)),),
        )
        return name, kinds[i % len(kinds)]

    first = "input", (("reshape", -1), ("linear", "input", inputs, width))
    last = "readout", (("act", "gelu"), ("linear", "readout", width, classes))
    return Chain([first, *(block(i) for i in range(depth)), last])


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
