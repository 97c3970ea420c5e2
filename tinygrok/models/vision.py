"""Image models as chains: deep MLPs, ResMLP, MLP-Mixer and VGG. Images are (H, W, C); a block is
what AutoInit tunes to J = 1.

Sources: Doshi, He, Gromov, arXiv 2111.12143 (MLPs, Mixer); Touvron et al., arXiv 2105.03404
(ResMLP); Simonyan and Zisserman, arXiv 1409.1556, in its form for small images (VGG-19).
"""

from ..engine.errors import InputError
from .chain import Chain

VGG19 = (
    64,
    64,
    "M",
    128,
    128,
    "M",
    *(256,) * 4,
    "M",
    *(512,) * 4,
    "M",
    *(512,) * 4,
    "M",
)  # channels, and where to pool
NORMS = ("none", "pre", "act", "batch", "post")


def deep_mlp(
    inputs: int,
    width: int,
    depth: int,
    classes: int,
    activation="relu",
    norm="none",
    mu: float = 0.0,
) -> Chain:
    """h = W x + b;  depth times h <- W phi(h) + b + mu h;  readout W phi(h) + b. norm: "pre" W phi(LN(h)), "act" W LN(phi(h)),
    "batch" W phi(BN(h)), "post" LN(W phi(h) + b + mu h). The first layer's sigma_w is 1 in the
    paper (Chain.init, first)."""

    def block(n: str) -> tuple[str, tuple]:
        act, linear = ("act", activation), ("linear", n, width, width)
        normal = ("batchnorm" if norm == "batch" else "layernorm", n + ".norm", width)
        orders = {
            "pre": (normal, act, linear),
            "batch": (normal, act, linear),
            "act": (act, normal, linear),
        }
        ops = orders.get(norm, (act, linear))
        ops = (("residual", n, mu, ops),) if mu else ops
        return n, (*ops, normal) if norm == "post" else ops

    first = "input", (("reshape", -1), ("linear", "input", inputs, width))
    last = "readout", (("act", activation), ("linear", "readout", width, classes))
    return Chain([first, *(block(f"hidden.{i}") for i in range(depth)), last])


def _mlp(name: str, size: int, hidden: int, activation: str) -> tuple:
    return (
        ("linear", name + ".in", size, hidden),
        ("act", activation),
        ("linear", name + ".out", hidden, size),
    )


def _tokens(
    image: tuple,
    patch: int,
    width: int,
    depth: int,
    classes: int,
    mu: float,
    norm,
    tokens,
    channels,
    end,
) -> Chain:
    """Patches; depth times x <- tokens(norm(x)^T)^T + mu x and x <- channels(norm(x)) + mu x; norm,
    mean, linear."""
    (H, W, C), blocks = image, []
    if H % patch or W % patch:
        raise InputError(f"images of {H} x {W} pixels do not split into patches of {patch}")
    T = H * W // patch**2
    for t, c in ((f"blocks.{i}.tokens", f"blocks.{i}.channels") for i in range(depth)):
        mixed = norm(t + ".norm"), ("swap",), *tokens(t, T), ("swap",), *end(t)
        blocks += [
            (t, (("residual", t, mu, mixed),)),
            (c, (("residual", c, mu, (norm(c + ".norm"), *channels(c), *end(c))),)),
        ]
    first = "input", (("conv", "input", C, width, patch, patch, 0), ("reshape", -1, width))
    mean = norm("final"), ("reshape", T, 1, width), ("avgpool", T, 1), ("reshape", -1)
    return Chain([first, *blocks, ("readout", (*mean, ("linear", "readout", width, classes)))])


def resmlp(
    image: tuple,
    classes: int,
    patch=16,
    width=384,
    depth=12,
    hidden=1536,
    scale=0.1,
    activation="gelu",
    mu=1.0,
) -> Chain:
    """ResMLP, by default S12: no norms but Affine(1, 0), one linear layer across tokens, LayerScale
    on both branches."""
    affine = lambda n: ("scale", n, width, 1.0, True)  # noqa: E731
    end = lambda n: (("scale", n + ".scale", width, scale, False),)  # noqa: E731
    linear = lambda n, T: (("linear", n, T, T),)  # noqa: E731
    channels = lambda n: _mlp(n, width, hidden, activation)  # noqa: E731
    return _tokens(image, patch, width, depth, classes, mu, affine, linear, channels, end)


def mixer(
    image: tuple,
    classes: int,
    patch=4,
    width=128,
    depth=100,
    hidden=(256, 256),
    activation="gelu",
    mu=1.0,
) -> Chain:
    """MLP-Mixer with residual strength mu: LayerNorm, MLPs of hidden = (across tokens, across
    channels) units."""
    layernorm = lambda n: ("layernorm", n, width)  # noqa: E731
    tokens = lambda n, T: _mlp(n, T, hidden[0], activation)  # noqa: E731
    channels = lambda n: _mlp(n, width, hidden[1], activation)  # noqa: E731
    return _tokens(
        image, patch, width, depth, classes, mu, layernorm, tokens, channels, lambda n: ()
    )


def vgg(
    image: tuple, classes: int, plan=VGG19, divide=1, batchnorm=False, activation="relu"
) -> Chain:
    """3x3 convolutions of plan // divide channels, [BatchNorm,] phi, 2x2 max-pooling at "M" while
    there is more than a pixel; linear readout. A block ends with its convolution: the nonlinearity
    of the one before opens it."""
    (H, W, C), blocks, ops = image, [], ()
    for item in plan:
        if item == "M":
            if min(H, W) > 1:
                ops, H, W = (*ops, ("maxpool", 2)), H // 2, W // 2
            continue
        name, N = f"conv.{len(blocks)}", max(item // divide, 1)
        blocks.append((name, (*ops, ("conv", name, C, N, 3, 1, 1))))
        ops, C = (
            ((("batchnorm", name + ".norm", N),) if batchnorm else ()) + (("act", activation),),
            N,
        )
    return Chain(
        [*blocks, ("readout", (*ops, ("reshape", -1), ("linear", "readout", H * W * C, classes)))]
    )


def network(
    name: str,
    image: tuple[int, int, int],
    width: int,
    depth: int,
    activation: str = "relu",
    *,
    classes: int = 10,
    norm: str = "none",
    mu: float | None = None,
    patch: int | None = None,
    scale: float = 1.0,
) -> Chain:
    """A network for small images (H, W, C) by name: mlp, resmlp, mixer, vgg, or vgg_bn.

    width   units, channels of the tokens, or channels of VGG's first convolution (VGG has its own
            depth)
    norm    of the MLP;  scale: the first LayerScale of ResMLP
    mu      strength of the residual connections; None: 0 for the MLP, else 1
    patch   pixels of a patch's side; None: at least 16 tokens
    """
    H, W, C = image
    if name == "mlp":
        return deep_mlp(H * W * C, width, depth, classes, activation, norm, mu or 0.0)
    if name.startswith("vgg"):
        if 64 % width:
            allowed = "VGG's first convolution has 64 channels or a divisor of that"
            raise InputError(f"width {width}: {allowed}")
        options = {"batchnorm": name == "vgg_bn", "activation": activation}
        return vgg(image, classes, divide=64 // width, **options)
    if patch is None:
        patch = max(n for n in (1, 2, 4, 7, 8) if H % n == W % n == 0 and 4 * n <= H)
    options = {"activation": activation, "mu": 1.0 if mu is None else mu}
    size = (image, classes, patch, width, depth)
    if name == "mixer":
        return mixer(*size, hidden=(2 * width, 2 * width), **options)
    return resmlp(*size, hidden=4 * width, scale=scale, **options)
