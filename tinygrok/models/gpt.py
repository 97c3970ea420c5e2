"""The GPT decoder of the papers on in-context learning and on pseudo-random numbers."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engine.border import integer
from ..engine.device import Array, Device
from ..engine.errors import InputError, require_known
from ..engine.gemm import matmul
from ..ops.activation import resolve
from ..ops.embedding import embedding_backward, embedding_forward
from .block import Block, BlockPass, Past, copy_to, norm_backward, norm_forward, norm_shapes, rows
from .protocol import EVALUATION, Shapes, Stage
from .tokens import Tokens

POSITIONS = ("rotary", "learned", "digits")


@dataclass(eq=False, repr=False)
class GPT:
    """h = E[token] + positions;  per block h += Attn(LN1(h)), h += MLP(LN2(h));  logits LNf(h) E^T

    The blocks, forward and backward, are in models/block.py.

    positions   "rotary": q and k turned, no embedding
                "learned": + P[t], P (context, C)
                "digits": + P[t // digits] + D[t mod digits], P (ceil(context/digits), C), D
                (digits, C)
    bias        biases of the linear layers;  shift: bias of the LayerNorms
    norm        False: no LayerNorm anywhere;  scale: of attention (None: 1/sqrt of a head's size)
    output_scale   a factor of the logits
    tied        the output matrix is E; otherwise a matrix of its own, (V, C) too
    residual    the matrices whose initial scale is divided by sqrt(2 depth): they write into the
                residual stream
    recompute   keep the input of every block only and compute its activations again in backward:
                the same bits
    size        number of parameters
    no_decay    parameters without weight decay in both papers: those with one axis
    Raises InputError for sizes below 1, a width that does not split into heads, and unknown names.
    Sources: the code of Learning to grok (GPT.in_context) and of How can transformers predict
    pseudo-random numbers (GPT.numbers: one token a number; GPT.base_b: digits).

    >>> import numpy as np
    >>> from tinygrok.engine.device import get_device
    >>> net = GPT(vocab=11, width=16, depth=2, heads=4, context=8)
    >>> net
    GPT(vocabulary 11, width 16, depth 2, 4 heads, rotary positions, relu, 6,480 parameters)
    >>> dev = get_device("cpu", "float64")
    >>> weights = net.init(np.random.default_rng(0))
    >>> tokens = net.prepare(dev, np.array([[3, 1, 4, 1, 5]]))
    >>> logits, tape = net.forward(dev, weights, tokens)
    >>> logits.shape, tape["blocks.1.attn.pattern"].shape
    ((5, 11), (1, 4, 5, 5))
    """

    vocab: int
    width: int
    depth: int
    heads: int
    context: int
    positions: str = "rotary"
    digits: int = 1
    activation: str = "relu"
    bias: bool = False
    shift: bool = True
    tied: bool = True
    residual: tuple[str, ...] = ("mlp.out",)
    recompute: bool = False
    norm: bool = True
    scale: float | None = None
    output_scale: float = 1.0

    buffers = Shapes()  # no state besides the parameters
    batchnorm = False
    by_neurons = False

    def __post_init__(self):
        resolve(self.activation)  # refuse an unknown name here, not in the first step
        for size in ("vocab", "width", "depth", "heads", "context", "digits"):
            setattr(self, size, integer(getattr(self, size), size, 1))
        require_known(self.positions, POSITIONS, "positions")
        rotary = self.positions == "rotary"
        if self.width % self.heads or (rotary and self.width // self.heads % 2):
            even = " of even size" if rotary else ""
            raise InputError(f"width {self.width} does not split into {self.heads} heads{even}")
        sizes = self.width, self.heads, self.context
        options = self.bias, self.shift, rotary, self.norm, self.scale
        self.block = Block(*sizes, self.activation, *options)
        self.output = "embed.token" if self.tied else "head"
        self.size = sum(math.prod(shape) for shape in self.shapes.values())
        self.no_decay = tuple(name for name, shape in self.shapes.items() if len(shape) == 1)

    @classmethod
    def in_context(
        cls, vocab=47, width=512, depth=4, heads=4, context=512, **options: Any
    ) -> "GPT":
        """The decoder of Learning to grok: rotary positions, ReLU, no biases, LayerNorm with
        shift."""
        return cls(vocab, width, depth, heads, context, **options)

    @classmethod
    def numbers(cls, vocab=2048, width=768, depth=1, heads=1, context=256, **options: Any) -> "GPT":
        """One token a number: learned positions, ReLU, no biases at all."""
        usual = {"positions": "learned", "shift": False, "residual": ("attn.out", "mlp.out")}
        return cls(vocab, width, depth, heads, context, **{**usual, **options})

    @classmethod
    def base_b(
        cls, base=256, width=1024, depth=2, heads=8, numbers=512, digits=4, **options: Any
    ) -> "GPT":
        """Base-b digits: number and digit positions, GELU, biases everywhere but in the output
        matrix."""
        usual = {"activation": "gelu", "bias": True, "residual": ("attn.out", "mlp.out")}
        options = {**usual, **options, "positions": "digits", "digits": digits}
        return cls(base, width, depth, heads, numbers * digits, **options)

    # -- parameters --------------------------------------------------------------------------------

    @property
    def shapes(self) -> Shapes:
        """Trained parameters of one network, by name."""
        C = self.width
        shapes: Shapes = {"embed.token": (self.vocab, C)}
        if self.positions != "rotary":
            shapes["embed.position"] = (-(-self.context // self.digits), C)
        if self.positions == "digits":
            shapes["embed.digit"] = (self.digits, C)
        for i in range(self.depth):
            for name, shape in self.block.shapes.items():
                shapes[f"blocks.{i}.{name}"] = shape
        shapes |= norm_shapes("final", C, self.shift, self.norm)
        if not self.tied:
            shapes["head"] = (self.vocab, C)
        return shapes

    def __repr__(self) -> str:
        sizes = f"width {self.width}, depth {self.depth}, {self.heads} heads"
        kind = f"{self.positions} positions, {self.activation}, {self.size:,} parameters"
        return f"GPT(vocabulary {self.vocab}, {sizes}, {kind})"

    def init(self, rng: np.random.Generator, std: float = 0.02) -> dict[str, np.ndarray]:
        """Fresh weights on the host, float64: gains 1, shifts and biases 0, matrices and embeddings
        Normal(0, std^2), those of `residual` divided by sqrt(2 depth), an untied output matrix by
        sqrt(width)."""
        into_stream = tuple(name + ".weight" for name in self.residual)
        weights = {}
        for name, shape in self.shapes.items():
            if len(shape) == 1:
                weights[name] = np.full(shape, 1.0 if name.endswith(".gain") else 0.0)
                continue
            scale = std
            if name.endswith(into_stream):
                scale = std / math.sqrt(2 * self.depth)
            if name == "head":
                scale = std / math.sqrt(self.width)
            weights[name] = scale * rng.standard_normal(shape)
        return weights

    def init_buffers(self) -> dict[str, np.ndarray]:
        """No state."""
        return {}

    def prepare(self, dev: Device, inputs: np.ndarray) -> Tokens:
        """Host sequences (B, T), or (E, B, T) when members see different ones; all positions."""
        return Tokens(dev, inputs, self.vocab)

    # -- embeddings of positions -------------------------------------------------------------------

    def _positions_forward(self, w: dict, h: Array, start: int) -> None:
        """h (..., B, T, C) += P[t // digits] + D[t mod digits] at t = start, start + 1, ..."""
        if self.positions == "rotary":
            return
        table = w["embed.position"][..., :, None, :]
        if self.positions == "digits":
            table = table + w["embed.digit"][..., None, :, :]
        table = table.reshape(*table.shape[:-3], -1, self.width)  # (..., positions, C)
        stop = start + h.shape[-2]
        h += table[..., None, start:stop, :]

    def _positions_backward(self, dev: Device, dh: Array, g: dict, accumulate: bool) -> None:
        """dP[t // digits] and dD[t mod digits]: sums of dh (..., B, T, C) over the batch and over
        the positions t of a row; unused rows get 0."""
        if self.positions == "rotary":
            return
        lead = g["embed.position"].shape[:-2]
        numbers = g["embed.position"].shape[-2]
        table = dev.zeros((*lead, numbers, self.digits, self.width))
        by_position = table.reshape(*lead, -1, self.width)
        by_position[..., : dh.shape[-2], :] = dh.sum(axis=-3)
        for name, axis in (("embed.position", -2), ("embed.digit", -3)):
            if name in g:
                before = g[name] if accumulate else 0.0
                g[name][...] = table.sum(axis=axis) + before

    # -- forward and backward ----------------------------------------------------------------------

    def forward(
        self, dev: Device, w: dict, inputs: Tokens, mode=EVALUATION, record=False, edit=None
    ) -> tuple[Array, dict]:
        """Logits (..., B Tq, V) at the positions of the tokens, and the tape. The last block
        computes queries, MLP and logits at the positions only. There is no dropout and no state: of
        the mode only the buffers concern it. edit(name, array) may change "blocks.i.attn.pattern"
        and ".out" in place before they are read; no backward then.

        The tape, of block i (names begin with blocks.i.) and of the end:
        ln1, ln2                 outputs of the norms (..., rows, C)
        attn.q                   queries (..., B, Tq, C), turned, over sqrt D
        attn.k, attn.v           keys, turned, and values (..., B, T, C)
        attn.pattern             (..., B, H, Tq, T)
        attn.out                 heads side by side (..., B, Tq, C)
        mlp.pre, mlp.hidden      (..., rows, 4C); of ReLU mlp.pre holds mlp.hidden
        final, logits            LNf(h) and the result
        in, mid, end             with record: the residual stream before, inside and after a block
        With recompute and without record: blocks.i.in, final, logits."""
        lead = w["embed.token"].shape[:-2]
        B, T = inputs.shape
        if self.context < T:
            raise InputError(f"a sequence of {T} tokens, but the context is {self.context}")
        buffer = mode.buffer or dev.fresh
        recompute = self.recompute and not record
        run = BlockPass(dev, w, (B, T), buffer, edit=edit, record=record, recompute=recompute)
        tape = {"tokens": inputs, "pass": run}
        h = run.buffer("residual", (*lead, B * T, self.width))
        _, tape["embed"] = embedding_forward(dev, _as_tables(w["embed.token"]), inputs.rows, h)
        self._positions_forward(w, run.sequences(h), 0)
        for i in range(self.depth):
            p = self._at(run, i, inputs.select)
            if p.recompute or p.record:
                before = run.buffer(p.name + "in", h.shape)
                tape[p.name + "in"] = copy_to(dev, h, before)
            h, part = self.block.forward(p, h)
            if not p.recompute:
                tape |= part
        z, part = self.readout(run, h)
        return z, tape | part

    def backward(self, dev: Device, dlogits: Array, tape: dict, g: dict, accumulate=False) -> None:
        """Write the gradient of every parameter into g, or add to g (a further shard of the batch).

        x = LNf(h), z = x E^T:  dx = dz E,  dE = dz^T x, with s dz for dz where output_scale is s.
        dh = LNf'(dx) goes through every block, last to first, to the embeddings: row n of dE gets
        the sum of dh over all places of token n (tied: added to dz^T x; otherwise dz^T x is the
        gradient of the output matrix).
        """
        run = tape["pass"]._replace(g=g, accumulate=accumulate)
        tokens = tape["tokens"]
        x = tape["final"]
        if self.output_scale != 1:
            dlogits = dlogits * self.output_scale
        matmul(dev, dlogits, x, g[self.output], ta=True, accumulate=accumulate)
        dx = run.buffer("d.final", x.shape)
        dx = matmul(dev, dlogits, run.w[self.output], dx)
        dh = norm_backward(run, "final", dx, tape["final.norm"])
        B, T = tokens.shape
        every = (*x.shape[:-2], B * T, self.width)
        for i in reversed(range(self.depth)):
            p = self._at(run, i, tokens.select)
            part = self._computed_again(p, tape) if p.recompute else tape
            # Two arrays in turns: block i reads the gradient that block i + 1 has written.
            out = run.buffer(f"d.full{i % 2}", every)
            dh = self.block.backward(p, dh, part, out)
        du = _as_tables(g["embed.token"])
        embedding_backward(dev, dh, tape["embed"], du, accumulate or self.tied)
        self._positions_backward(dev, run.sequences(dh), g, accumulate)

    def readout(self, p: BlockPass, h: Array) -> tuple[Array, dict]:
        """Logits LNf(h) E^T of a residual stream h (..., rows, C), and the end of the tape."""
        x, norm = norm_forward(p, "final", h)
        z = p.buffer("logits", (*x.shape[:-1], self.vocab))
        z = matmul(p.dev, x, p.w[self.output], z, tb=True)
        if self.output_scale != 1:
            z *= self.output_scale
        return z, {"final": x, "final.norm": norm, "logits": z}

    def _at(self, run: BlockPass, i: int, select: Array | slice | None) -> BlockPass:
        """The pass through block i. Only the last one leaves out positions: the others feed keys of
        later ones."""
        last = i == self.depth - 1
        return run._replace(name=f"blocks.{i}.", select=select if last else None)

    def _computed_again(self, p: BlockPass, tape: dict) -> dict:
        """The activations of a block from its input, for backward."""
        before = tape[p.name + "in"]
        h = copy_to(p.dev, before, p.buffer("residual", before.shape))
        _, part = self.block.forward(p._replace(complete=False), h)
        return part

    def stages(self, dev: Device, w: dict) -> list[Stage]:
        """The blocks as maps of the residual stream (B, T, C), for Jacobians; gradients of
        parameters are thrown away."""
        waste = {name: dev.empty(shape) for name, shape in self.shapes.items()}

        def stage(i: int) -> Stage:
            def forward(x: Array) -> tuple[Array, tuple]:
                p = BlockPass(dev, w, x.shape[:2], dev.fresh, f"blocks.{i}.", g=waste)
                y, tape = self.block.forward(p, rows(x).copy())
                return y.reshape(x.shape), (p, tape)

            def backward(dy: Array, cache: tuple[BlockPass, dict]) -> Array:
                p, tape = cache
                dh = rows(dy).copy()
                dx = self.block.backward(p, dh, tape, dev.empty(dh.shape))
                return dx.reshape(dy.shape)

            return Stage(f"blocks.{i}", forward, backward)

        return [stage(i) for i in range(self.depth)]

    # -- generation --------------------------------------------------------------------------------

    def generate(self, dev: Device, w: dict, tokens: np.ndarray, count: int) -> Array:
        """The most likely continuation, token by token: host integers (B, T0) or (E, B, T0) ->
        device (..., B, count).

        Keys and values of earlier tokens are kept, so a token costs one query; nothing waits for
        the device."""
        first = Tokens(dev, tokens, self.vocab, slice(-1, None))
        lead = w["embed.token"].shape[:-2]
        B, T = first.shape
        total = T + count - 1
        if total > self.context:
            raise InputError(f"{T} + {count} tokens do not fit the context of {self.context}")
        kept = (*lead, B, total, self.width)
        past = [Past(dev.empty(kept), dev.empty(kept), 0) for _ in range(self.depth)]
        result = dev.empty((*lead, B, count), "int64")
        h, _ = embedding_forward(dev, _as_tables(w["embed.token"]), first.rows)
        run = BlockPass(dev, w, first.shape, dev.fresh)
        select = first.select
        start = 0
        for n in range(count):
            self._positions_forward(w, run.sequences(h), start)
            for i in range(self.depth):
                before = past[i]._replace(start=start)
                p = self._at(run, i, select)._replace(past=before)
                h, _ = self.block.forward(p, h)
            z, _ = self.readout(run, h)
            result[..., n] = z.argmax(axis=-1)
            number = result[..., n, None]
            h = dev.xp.take_along_axis(w["embed.token"], number, axis=-2)
            start += run.shape[1]
            run = run._replace(shape=(B, 1))  # from here on one token, which sees all before it
            select = None
        return result


def _as_tables(embedding: Array) -> Array:
    """(..., V, C) -> (..., 1, V, C): one table, as ops.embedding takes several."""
    return embedding[..., None, :, :]
