"""Image models as chains: deep MLPs, ResMLP, MLP-Mixer and VGG. Images are (H, W, C); a block is
what AutoInit tunes to J = 1.

Sources: Doshi, He, Gromov, arXiv 2111.12143 (MLPs, Mixer); Touvron et al., arXiv 2105.03404
(ResMLP); Simonyan and Zisserman, arXiv 1409.1556, in its form for small images (VGG-19).
"""

from ..engine.errors import InputError, require_known
from .chain import Chain

VGG19 = (  # channels, and where to pool
    *(64, 64, "M"),
    *(128, 128, "M"),
    *(256, 256, 256, 256, "M"),
    *(512, 512, 512, 512, "M"),
    *(512, 512, 512, 512, "M"),
)
Image = tuple[int, int, int]  # H, W, C
NORMS = ("none", "pre", "act", "batch", "post")


def deep_mlp(
    inputs: int, width: int, depth: int, classes: int, activation="relu", norm="none", mu=0.0
) -> Chain:
    """h = W x + b;  depth times h <- W phi(h) + b + mu h;  readout W phi(h) + b.

    norm   "none"
           "pre"     W phi(LN(h)) + b + mu h
           "act"     W LN(phi(h)) + b + mu h
           "batch"   W phi(BN(h)) + b + mu h
           "post"    LN(W phi(h) + b + mu h)
    The first layer's sigma_w is 1 in the paper (Chain.init, first).

    >>> deep_mlp(784, 100, 3, 10, "tanh", "pre", mu=0.9)
    Chain(5 blocks, 110,410 parameters)
    """
    require_known(norm, NORMS, "norm")

    def block(name: str) -> tuple[str, tuple]:
        act = ("act", activation)
        linear = ("linear", name, width, width)
        kind = "batchnorm" if norm == "batch" else "layernorm"
        normal = (kind, name + ".norm", width)
        orders = {
            "pre": (normal, act, linear),
            "batch": (normal, act, linear),
            "act": (act, normal, linear),
        }
        ops = orders.get(norm, (act, linear))
        if mu:
            ops = (("residual", name, mu, ops),)
        if norm == "post":
            ops = (*ops, normal)
        return name, ops

    first = "input", (("reshape", -1), ("linear", "input", inputs, width))
    hidden = [block(f"hidden.{i}") for i in range(depth)]
    last = "readout", (("act", activation), ("linear", "readout", width, classes))
    return Chain([first, *hidden, last])


def _mlp(name: str, size: int, hidden: int, activation: str) -> tuple:
    """Two linear layers, size -> hidden -> size."""
    return (
        ("linear", name + ".in", size, hidden),
        ("act", activation),
        ("linear", name + ".out", hidden, size),
    )


def _mixing(image, patch, width, depth, classes, mu, norm, mix_tokens, mix_channels) -> Chain:
    """Patches become T tokens of `width` channels, x (T, width), which two halves of a block mix.

    depth times  x <- mix_tokens(norm(x)^T)^T + mu x  and  x <- mix_channels(norm(x)) + mu x;
    then norm, mean over tokens, linear.
    norm: name -> an operation. mix_tokens: (name, T), mix_channels: name -> operations; those of
    mix_tokens start with tokens as the last axis, and swap back themselves."""
    H, W, C = image
    if H % patch or W % patch:
        raise InputError(f"images of {H} x {W} pixels do not split into patches of {patch}")
    T = (H // patch) * (W // patch)
    blocks = []
    for i in range(depth):
        tokens = f"blocks.{i}.tokens"
        mixed = (norm(tokens + ".norm"), ("swap",), *mix_tokens(tokens, T))
        blocks.append((tokens, (("residual", tokens, mu, mixed),)))
        channels = f"blocks.{i}.channels"
        mixed = (norm(channels + ".norm"), *mix_channels(channels))
        blocks.append((channels, (("residual", channels, mu, mixed),)))
    cut = ("conv", "input", C, width, patch, patch, 0)
    mean = (("reshape", T, 1, width), ("avgpool", T, 1), ("reshape", -1))
    readout = (norm("final"), *mean, ("linear", "readout", width, classes))
    first = "input", (cut, ("reshape", -1, width))
    return Chain([first, *blocks, ("readout", readout)])


def resmlp(
    image: Image,
    classes: int,
    patch: int = 16,
    width: int = 384,
    depth: int = 12,
    hidden: int = 1536,
    scale: float = 0.1,
    activation: str = "gelu",
    mu: float = 1.0,
) -> Chain:
    """ResMLP, by default S12.

    x <- LayerScale(W_T Affine(x)) + mu x across tokens, then x <- LayerScale(MLP(Affine(x))) + mu x

    No norms but Affine, gain 1 and shift 0, and LayerScale, gain `scale`; one linear layer across
    tokens, `hidden` units across channels.

    >>> resmlp((32, 32, 3), 10, patch=8, width=16, depth=2, hidden=64)
    Chain(6 blocks, 8,282 parameters)
    """

    def affine(name: str) -> tuple:
        return ("scale", name, width, 1.0, True)

    def layer_scale(name: str) -> tuple:
        return ("scale", name + ".scale", width, scale, False)

    def mix_tokens(name: str, T: int) -> tuple:
        return ("linear", name, T, T), ("swap",), layer_scale(name)

    def mix_channels(name: str) -> tuple:
        return *_mlp(name, width, hidden, activation), layer_scale(name)

    return _mixing(image, patch, width, depth, classes, mu, affine, mix_tokens, mix_channels)


def mixer(
    image: Image,
    classes: int,
    patch: int = 4,
    width: int = 128,
    depth: int = 100,
    hidden: tuple[int, int] = (256, 256),
    activation: str = "gelu",
    mu: float = 1.0,
) -> Chain:
    """MLP-Mixer with residual strength mu: x <- MLP(LN(x)^T)^T + mu x, then x <- MLP(LN(x)) + mu x.

    hidden: units of the MLPs (across tokens, across channels).

    >>> mixer((32, 32, 3), 10, patch=8, width=16, depth=2, hidden=(8, 32))
    Chain(6 blocks, 6,122 parameters)
    """

    def layernorm(name: str) -> tuple:
        return ("layernorm", name, width)

    def mix_tokens(name: str, T: int) -> tuple:
        return *_mlp(name, T, hidden[0], activation), ("swap",)

    def mix_channels(name: str) -> tuple:
        return _mlp(name, width, hidden[1], activation)

    return _mixing(image, patch, width, depth, classes, mu, layernorm, mix_tokens, mix_channels)


def vgg(
    image: Image, classes: int, plan: tuple = VGG19, divide=1, batchnorm=False, activation="relu"
) -> Chain:
    """VGG: 3x3 convolutions of plan // divide channels, [BatchNorm,] phi; a linear readout.

    2x2 max-pooling stands at "M" while there is more than a pixel.
    A block ends with its convolution: the nonlinearity of the one before opens it.

    >>> vgg((8, 8, 3), 10, (16, "M", 32, "M"))
    Chain(3 blocks, 6,378 parameters)
    """
    H, W, C = image
    blocks = []
    ops: tuple = ()  # since the last convolution
    for item in plan:
        if item == "M":
            if min(H, W) > 1:
                ops = (*ops, ("maxpool", 2))
                H //= 2
                W //= 2
            continue
        name = f"conv.{len(blocks)}"
        N = max(item // divide, 1)
        blocks.append((name, (*ops, ("conv", name, C, N, 3, 1, 1))))
        ops = (("act", activation),)
        if batchnorm:
            ops = (("batchnorm", name + ".norm", N), *ops)
        C = N
    readout = (*ops, ("reshape", -1), ("linear", "readout", H * W * C, classes))
    return Chain([*blocks, ("readout", readout)])
