"""Image models as chains: deep MLPs, ResMLP, MLP-Mixer, ViT, ResNet and VGG. Images are (H, W, C);
a block is what AutoInit tunes to J = 1.

Sources: Doshi, He, Gromov, arXiv 2111.12143 (MLPs, Mixer, and the forms of ViT and ResNet, which
are Dosovitskiy et al., arXiv 2010.11929, and He et al., arXiv 1512.03385 and 1603.05027, with a
residual strength mu); Touvron et al., arXiv 2105.03404 (ResMLP); Simonyan and Zisserman, arXiv
1409.1556, in its form for small images (VGG-19).
"""

from functools import partial

from ..engine.errors import InputError, require_known
from .chain import Chain

DEEP = (512, 512, 512, 512, "M")
VGG19 = (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", *DEEP, *DEEP)  # "M": where to pool
Image = tuple[int, int, int]  # H, W, C
ALL = slice(None)
EVEN = slice(None, None, 2)
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
        before = (normal,) if norm in ("pre", "batch") else ()
        between = (normal,) if norm == "act" else ()
        ops = (*before, act, *between, linear)
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


def _mixing(
    image, patch, width, depth, classes, mu, tokens, channels, norm=("layernorm",), cls=False
) -> Chain:
    """Patches become T tokens of `width` channels, x (T, width), which two halves of a block mix.

    depth times  x <- tokens(norm(x)) + mu x  and  x <- channels(norm(x)) + mu x;
    then norm, mean over tokens, linear.
    tokens: (name, T), channels: name -> operations. norm: its kind, and settings.
    cls: learned positions, the first one is also a token (the class token); its output takes the
    place of the mean."""
    H, W, C = image
    if H % patch or W % patch:
        raise InputError(f"images of {H} x {W} pixels do not split into patches of {patch}")
    T = (H // patch) * (W // patch)
    cut = (("conv", "input", C, width, patch, patch, 0), ("reshape", -1, width))
    pool = (("reshape", T, 1, width), ("avgpool", T, 1), ("reshape", -1))
    if cls:
        T += 1
        put = ("put", (T, width), (ALL, slice(1, None)))
        cut = (*cut, put, ("positions", "input.positions", T, width))
        pool = (("take", (ALL, 0)),)
    kind, *settings = norm
    blocks = []
    for i in range(depth):
        for half, mix in (("tokens", partial(tokens, T=T)), ("channels", channels)):
            name = f"blocks.{i}.{half}"
            mixed = ((kind, name + ".norm", width, *settings), *mix(name))
            blocks.append((name, (("residual", name, mu, mixed),)))
    readout = ((kind, "final", width, *settings), *pool, ("linear", "readout", width, classes))
    return Chain([("input", cut), *blocks, ("readout", readout)])


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

    def layer_scale(name: str) -> tuple:
        return ("scale", name + ".scale", width, scale, False)

    def mix_tokens(name: str, T: int) -> tuple:
        return ("swap",), ("linear", name, T, T), ("swap",), layer_scale(name)

    def mix_channels(name: str) -> tuple:
        return *_mlp(name, width, hidden, activation), layer_scale(name)

    affine = ("scale", 1.0, True)
    return _mixing(image, patch, width, depth, classes, mu, mix_tokens, mix_channels, affine)


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

    def mix_tokens(name: str, T: int) -> tuple:
        return ("swap",), *_mlp(name, T, hidden[0], activation), ("swap",)

    mix_channels = partial(_mlp, size=width, hidden=hidden[1], activation=activation)
    return _mixing(image, patch, width, depth, classes, mu, mix_tokens, mix_channels)


def vit(
    image: Image, classes: int, patch=8, width=256, depth=10, heads=8, activation="relu", mu=1.0
) -> Chain:
    """ViT with residual strength mu: x <- Attention(LN(x)) + mu x, then x <- MLP(LN(x)) + mu x.

    Queries, keys and values have no biases, the MLP has 4 width units; learned positions, at first
    Normal(0, 1), of which the first is also the token that LN and the readout are for.

    >>> vit((32, 32, 3), 10, width=16, depth=2, heads=4)
    Chain(6 blocks, 10,026 parameters)
    """
    if width % heads:
        raise InputError(f"{heads} heads do not share {width} channels equally")

    def mix_tokens(name: str, T: int) -> tuple:
        queries_keys_values = ("linear", name + ".in", width, 3 * width, False)
        return queries_keys_values, ("attention", heads), ("linear", name + ".out", width, width)

    mix_channels = partial(_mlp, size=width, hidden=4 * width, activation=activation)
    return _mixing(image, patch, width, depth, classes, mu, mix_tokens, mix_channels, cls=True)


def resnet(
    image: Image, classes: int, depth=110, width=16, norm="layernorm", activation="relu", mu=1.0
) -> Chain:
    """ResNet for small images, of depth 6 n + 2: a convolution, norm and phi; 3 n blocks

        x <- conv(phi(norm(conv(phi(norm(x)))))) + mu x

    of 3x3 convolutions; mean over pixels, linear. After n and 2 n blocks there are half as many
    rows and columns and twice as many channels: x at every second pixel, its norm, and zeros.

    norm   "layernorm", over pixels and channels; "batchnorm" or "none"

    >>> resnet((32, 32, 3), 10, depth=20, width=16, norm="batchnorm")
    Chain(11 blocks, 270,410 parameters)
    """
    n, rest = divmod(depth - 2, 6)
    if n < 1 or rest:
        raise InputError(f"a ResNet has 6 n + 2 layers, n = 1, 2, ..., not {depth}")
    require_known(norm, ("none", "layernorm", "batchnorm"), "norm")
    H, W, C = image
    act = ("act", activation)

    def normal(name: str, H: int, W: int, C: int) -> tuple:
        if norm == "layernorm":
            return ("reshape", -1), (norm, name, H * W * C), ("reshape", H, W, C)
        return () if norm == "none" else ((norm, name, C),)

    stem = (("conv", "input", C, width, 3, 1, 1), *normal("input.norm", H, W, width), act)
    blocks = []
    C = width
    for i in range(3 * n):
        name = f"blocks.{i}"
        stride = 2 if i in (n, 2 * n) else 1
        N = stride * C
        first = *normal(name + ".norm", H, W, C), act, ("conv", name + ".in", C, N, 3, stride, 1)
        H = -(-H // stride)
        W = -(-W // stride)
        last = *normal(name + ".hidden", H, W, N), act, ("conv", name + ".out", N, N, 3, 1, 1)
        thinned = ("take", (ALL, EVEN, EVEN))
        widened = ("put", (H, W, N), (..., slice(C)))
        way = (thinned, *normal(name + ".way", H, W, C), widened) if stride == 2 else ()
        blocks.append((name, (("residual", name, mu, first + last, way),)))
        C = N
    readout = (("avgpool", H, W), ("reshape", -1), ("linear", "readout", C, classes))
    return Chain([("input", stem), *blocks, ("readout", readout)])


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
