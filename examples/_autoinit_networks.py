"""The networks of autoinit.py, with the settings that its flags may change."""

from tinygrok.engine.errors import InputError
from tinygrok.models import vision

RELU = {"activation": "relu", "optimizer": "sgd"}
GELU = {"activation": "gelu", "optimizer": "adamw"}
MLP = RELU | {"width": 100, "depth": 50, "lr": [0.01], "steps": 1500, "batch": 128}
TOKENS = GELU | {"width": 64, "depth": 6, "lr": [2e-3], "steps": 400, "batch": 64}
VGG = RELU | {"width": 8, "depth": 0, "lr": [0.02], "steps": 1000, "batch": 64}
VGG_BN = VGG | {"lr": [0.05]}
PRESETS = {"mlp": MLP, "resmlp": TOKENS, "mixer": TOKENS, "vgg": VGG, "vgg_bn": VGG_BN}
QUICK = {"steps": 300, "batch": 64, "tune_steps": 60}
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
