"""The two-layer network of the grokking papers."""

import numpy as np

from ..engine.border import integer
from ..engine.device import Array, Device
from ..engine.errors import InputError
from ..ops.activation import activation_backward, activation_forward, resolve
from ..ops.dropout import dropout_backward, dropout_forward
from ..ops.embedding import RowIndex, embedding_backward, embedding_forward
from ..ops.linear import linear_backward, linear_forward
from ..ops.norm import batchnorm_backward, batchnorm_forward
from .chain import Chain
from .protocol import EVALUATION, Shapes, Stage


def power(terms: int) -> str:
    """The activation x^S with which a two-layer network can add S terms exactly."""
    return "square" if terms == 2 else f"power{terms}"


class TwoLayerNet:
    """f = W^T phi(U^(1) e(n_1) + ... + U^(S) e(n_S)), no biases.

    U (S, P, N): row n of table s is what input n_s = n adds to the N pre-activations;  W (N, C):
    read-out. In the papers' notation U[s] is the transpose of U^(s) and W the transpose of W. phi
    is x^S unless an activation is given. Weights ~ Normal(0, (0.5/(2N)^(1/3))^2). Dropout acts on
    the pre-activations; with batchnorm the activations pass through BatchNorm (gain, shift, running
    statistics of shape N) before the read-out. Raises InputError for sizes below 1 and unknown
    activations.
    Sources: Grokking modular polynomials; To grok or not to grok (BatchNorm: eq. 5).

    >>> import numpy as np
    >>> from tinygrok.engine.device import get_device
    >>> net = TwoLayerNet(p=5, width=8)
    >>> net
    W(8x5) square(U[0][n1] + U[1][n2]), U 2x5x8
    >>> dev = get_device("cpu", "float64")
    >>> weights = net.init(np.random.default_rng(0))
    >>> pairs = net.prepare(dev, np.array([[1, 2, 4], [3, 3, 0]]))  # (1, 3), (2, 3) and (4, 0)
    >>> logits, tape = net.forward(dev, weights, pairs)
    >>> logits.shape, tape["hidden.pre"].shape
    ((3, 5), (3, 8))
    """

    by_neurons = True

    def __init__(self, p: int, width: int, terms=2, activation=None, classes=None, batchnorm=False):
        self.p = integer(p, "p", 1)
        self.width = integer(width, "width", 1)
        self.terms = integer(terms, "terms", 1)
        self.activation = power(self.terms) if activation is None else activation
        resolve(self.activation)  # refuse an unknown name here, not in the first step
        self.classes = integer(p if classes is None else classes, "classes", 1)
        self.batchnorm = batchnorm
        N = self.width
        self.shapes: Shapes = {"U": (self.terms, self.p, N), "W": (N, self.classes)}
        self.buffers: Shapes = {}
        if batchnorm:
            self.shapes |= {"norm.gain": (N,), "norm.shift": (N,)}
            self.buffers |= {"norm.mean": (N,), "norm.var": (N,)}

    def __repr__(self) -> str:
        tables = " + ".join(f"U[{s}][n{s + 1}]" for s in range(self.terms))
        phi = f"{self.activation}({tables})"
        if self.batchnorm:
            phi = f"batchnorm({phi})"
        return f"W({self.width}x{self.classes}) {phi}, U {self.terms}x{self.p}x{self.width}"

    @staticmethod
    def neurons(arrays: dict, part: slice) -> dict:
        """Views of some neurons' parameters, gradients or buffers: a network whose logits are a
        summand of this one's."""
        return {
            name: x[..., part, :] if name == "W" else x[..., part] for name, x in arrays.items()
        }

    def init(self, rng: np.random.Generator, std: float | None = None) -> dict[str, np.ndarray]:
        """Fresh weights on the host, float64; std defaults to the papers' 0.5/(2N)^(1/3)."""
        scale = 0.5 / (2 * self.width) ** (1 / 3) if std is None else std
        weights = {name: scale * rng.standard_normal(self.shapes[name]) for name in ("U", "W")}
        if self.batchnorm:
            weights["norm.gain"] = np.ones(self.width)
            weights["norm.shift"] = np.zeros(self.width)
        return weights

    def init_buffers(self) -> dict[str, np.ndarray]:
        """First running statistics on the host: mean 0, variance 1."""
        if not self.batchnorm:
            return {}
        return {"norm.mean": np.zeros(self.width), "norm.var": np.ones(self.width)}

    def prepare(self, dev: Device, inputs: np.ndarray) -> RowIndex:
        """Host inputs (S, B), or (E, S, B) where members see different ones, by table row.

        Raises InputError for other than S terms."""
        index = RowIndex(dev, inputs, self.p)
        shape = index.host.shape
        if shape[-2] != self.terms:
            raise InputError(f"inputs must have {self.terms} rows, one a term, not shape {shape}")
        return index

    def forward(
        self, dev: Device, w: dict, inputs: RowIndex, mode=EVALUATION
    ) -> tuple[Array, dict]:
        """Logits (..., B, C) and the tape. w holds parameters and buffers."""
        buffer = mode.buffer or dev.fresh
        lead = w["W"].shape[:-2]
        B = len(inputs)
        hidden = (*lead, B, w["W"].shape[-2])
        h, embed = embedding_forward(dev, w["U"], inputs, buffer("hidden.pre", hidden))
        tape = {"embed": embed, "hidden.pre": h}
        if mode.dropout is not None:
            keys, rate = mode.dropout
            first = mode.offset * self.width
            mask = buffer("dropout.mask", hidden)
            h, tape["dropout"] = dropout_forward(dev, h, rate, keys, first, h, mask)
        out = buffer("hidden.post", hidden)
        a, tape["activation"] = activation_forward(dev, h, self.activation, out)
        if self.batchnorm:
            state = [w["norm." + name] for name in ("gain", "shift", "mean", "var")]
            xhat = buffer("batchnorm.xhat", hidden)
            a, tape["batchnorm"] = batchnorm_forward(
                dev, a, *state, train=mode.train, weight=mode.weight, xhat=xhat, out=a
            )
        out = buffer("logits", (*lead, B, self.classes))
        z, tape["readout"] = linear_forward(dev, a, w["W"], out=out)
        tape["hidden.post"] = a
        tape["logits"] = z
        return z, tape

    def backward(self, dev: Device, dlogits: Array, tape: dict, g: dict, accumulate=False) -> None:
        """Write dL/dU and dL/dW (dL/dgain, dL/dshift) into g, or add to g. The activations on the
        tape are overwritten: their memory holds da, then dh.

        dW = a^T dz    da = dz W^T    dh = phi'(h) da    dU[s, n] = sum of dh_b with n_s(b) = n
        """
        a = tape["hidden.post"]  # not read again once dW is done
        da = linear_backward(dev, dlogits, tape["readout"], g["W"], dx=a, accumulate=accumulate)
        if self.batchnorm:
            dgain = g["norm.gain"]
            dshift = g["norm.shift"]
            da = batchnorm_backward(dev, da, tape["batchnorm"], dgain, dshift, accumulate, dx=da)
        dh = activation_backward(dev, da, tape["activation"], dx=da)
        if "dropout" in tape:
            dh = dropout_backward(dev, dh, tape["dropout"], dx=dh)
        embedding_backward(dev, dh, tape["embed"], g["U"], accumulate)

    def stages(self, dev: Device, w: dict) -> list[Stage]:
        """One map, hidden pre-activations (B, N) -> logits (B, C), for Jacobians; BatchNorm takes
        the statistics of the batch."""
        act = ("act", self.activation)
        norm = ("batchnorm", "norm", self.width)
        linear = ("linear", "readout", self.width, self.classes)
        ops = (act, norm, linear) if self.batchnorm else (act, linear)
        weights = {name: x for name, x in w.items() if name.startswith("norm.")}
        weights["readout.weight"] = w["W"]
        return Chain([("readout", ops)]).stages(dev, weights)
