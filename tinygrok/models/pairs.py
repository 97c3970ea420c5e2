"""The other networks of To grok or not to grok on tables of pairs: a three-layer MLP, and a
Transformer of one block on two tokens."""

import math

import numpy as np

from ..engine.device import Array, Device
from ..ops.activation import activation_backward, activation_forward
from ..ops.dropout import dropout_backward, dropout_forward
from ..ops.linear import linear_backward, linear_forward
from .gpt import GPT
from .mlp import TwoLayerNet
from .protocol import EVALUATION, Stage
from .tokens import Tokens


class ThreeLayerNet(TwoLayerNet):
    """f = W^T phi(V^T phi(U^(1) e(n_1) + ... + U^(S) e(n_S))), no biases.

    U (S, P, N), V (N, N), W (N, C). Up to V it is a TwoLayerNet, whose logits are the
    pre-activations of the second hidden layer. Dropout acts on the pre-activations of both hidden
    layers; there is no BatchNorm. Weights ~ Normal(0, 2/fan_in): fan_in is S P for U (the S one-hot
    inputs side by side), N for V and W. Raises InputError as TwoLayerNet.
    Source: To grok or not to grok (3-layer ReLU MLP, N = 500); the authors' class is not published.

    >>> ThreeLayerNet(p=5, width=8)
    W(8x5) relu(W(8x8) relu(U[0][n1] + U[1][n2]), U 2x5x8)
    """

    by_neurons = False

    def __init__(self, p: int, width: int, terms=2, activation="relu", classes=None):
        super().__init__(p, width, terms, activation, classes)
        self.first = TwoLayerNet(p, width, terms, activation, classes=width)
        self.shapes = {"U": self.shapes["U"], "V": self.first.shapes["W"], "W": self.shapes["W"]}

    def __repr__(self) -> str:
        return f"W({self.width}x{self.classes}) {self.activation}({self.first!r})"

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Fresh weights on the host, float64: Normal(0, 2/fan_in)."""
        weights = {name: rng.standard_normal(shape) for name, shape in self.shapes.items()}
        for x in weights.values():
            x *= math.sqrt(2 / math.prod(x.shape[:-1]))
        return weights

    def forward(self, dev: Device, w: dict, inputs, mode=EVALUATION) -> tuple[Array, dict]:
        """Logits (..., B, C) and the tape; hidden.post is what the read-out sees."""
        buffer = mode.buffer or dev.fresh
        h, below = self.first.forward(dev, {"U": w["U"], "W": w["V"]}, inputs, mode)
        tape = {"first": below, "second.pre": h}
        if mode.dropout is not None:
            keys, rate = mode.dropout
            other = keys[..., ::-1]  # the first layer's mask has the keys in their order
            h, tape["dropout"] = dropout_forward(dev, h, rate, other, mode.offset * self.width, h)
        out = buffer("second.post", h.shape)
        a, tape["activation"] = activation_forward(dev, h, self.activation, out)
        out = buffer("output", (*h.shape[:-1], self.classes))
        z, tape["readout"] = linear_forward(dev, a, w["W"], out=out)
        return z, tape | {"hidden.post": a, "logits": z}

    def backward(self, dev: Device, dlogits: Array, tape: dict, g: dict, accumulate=False) -> None:
        """Write dL/dU, dL/dV and dL/dW into g, or add to g. The activations on the tape are
        overwritten.

        dW = a^T dz    da = dz W^T    dh = phi'(h) da,  and on as in TwoLayerNet with dh for dz
        """
        a = tape["hidden.post"]  # not read again once dW is done
        da = linear_backward(dev, dlogits, tape["readout"], g["W"], dx=a, accumulate=accumulate)
        dh = activation_backward(dev, da, tape["activation"], dx=da)
        if "dropout" in tape:
            dh = dropout_backward(dev, dh, tape["dropout"], dx=dh)
        self.first.backward(dev, dh, tape["first"], {"U": g["U"], "W": g["V"]}, accumulate)

    def stages(self, dev: Device, w: dict) -> list[Stage]:
        """Pre-activations of the first layer -> of the second -> logits (B, C), for Jacobians."""
        return [*self.first.stages(dev, {"W": w["V"]}), *super().stages(dev, w)]


class PairTransformer(GPT):
    """f = h_2 W^T / C after  h_s = E[n_s] + P[s],  h += Attn(h),  h += W_out^T phi(W_in^T h)

    A GPT of one block on the tokens n_1, n_2, without norms and biases, read at the second token:
    its query sees both tokens, so that a causal mask hides nothing. Attn(h) = softmax(q k^T / D) v
    W_o with D = C/H, the size of a head; phi = ReLU, 4 C units. E, P ~ Normal(0, 1), matrices ~
    Normal(0, 1/fan_in).
    Source: the code of To grok or not to grok (EncoderOnlyTransformers; 1/D and 1/C are its muP, s
    = 1, as in the authors' notebook, where C = 128, H = 4).

    >>> import numpy as np
    >>> from tinygrok.engine.device import get_device
    >>> net = PairTransformer(p=11, width=16)
    >>> net
    GPT(vocabulary 11, width 16, depth 1, 4 heads, learned positions, relu, 3,456 parameters)
    >>> dev = get_device("cpu", "float64")
    >>> weights = net.init(np.random.default_rng(0))
    >>> pairs = net.prepare(dev, np.array([[1, 2, 4], [3, 3, 0]]))  # (1, 3), (2, 3) and (4, 0)
    >>> net.forward(dev, weights, pairs)[0].shape
    (3, 11)
    """

    def __init__(self, p: int, width: int = 128, heads: int = 4):
        options: dict = {"positions": "learned", "shift": False, "tied": False, "norm": False}
        options |= {"scale": heads / width, "output_scale": 1 / width, "residual": ()}
        super().__init__(p, width, 1, heads, context=2, **options)
        self.classes = self.vocab

    def init(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Fresh weights on the host, float64: embeddings Normal(0, 1), matrices Normal(0,
        1/fan_in)."""
        weights = super().init(rng, std=1.0)  # the output matrix has 1/C already
        for name, x in weights.items():
            if name.startswith("blocks."):
                x /= math.sqrt(len(x))
        return weights

    def prepare(self, dev: Device, inputs: np.ndarray) -> Tokens:
        """Host pairs (2, B), or (E, 2, B) where members see different ones."""
        return Tokens(dev, inputs.swapaxes(-1, -2), self.vocab, slice(-1, None))
