"""The GPT decoder of the papers on in-context learning and on pseudo-random numbers."""

import math
from collections.abc import Callable

import numpy as np

from ..engine.device import Array, Device
from ..engine.errors import InputError
from ..engine.gemm import matmul
from ..ops import attention
from ..ops.activation import activation_backward, activation_forward, resolve
from ..ops.embedding import RowIndex, embedding_backward, embedding_forward
from ..ops.linear import linear_backward, linear_forward
from ..ops.norm import layernorm_backward, layernorm_forward
from .protocol import EVALUATION, Mode, Stage

POSITIONS = ("rotary", "learned", "digits")


class Tokens:
    """Sequences of token numbers, grouped by token once, and the positions whose next token counts
    in the loss.

    tokens     host integers (B, T), or (E, B, T) when members see different sequences
    positions  a slice, or integers in increasing order; None: all. Logits have B Tq rows for Tq positions.

    Raises InputError for a token outside the vocabulary and for positions outside the sequence,
    repeated or none."""

    def __init__(self, dev: Device, tokens: np.ndarray, vocab: int, positions=None):
        tokens = np.asarray(tokens)
        if tokens.ndim not in (2, 3):
            raise InputError(f"tokens must have shape (B, T) or (E, B, T), not {tokens.shape}")
        self.shape = B, T = tokens.shape[-2:]
        positions = (
            slice(None)
            if positions is None
            else positions
            if isinstance(positions, slice)
            else list(positions)
        )
        try:
            self.rows = RowIndex(dev, tokens.reshape(*tokens.shape[:-2], 1, B * T), vocab)
            numbers = np.arange(T)[positions]
        except IndexError as error:
            raise InputError(str(error)) from error
        if not numbers.size or (np.diff(numbers) <= 0).any():
            raise InputError(f"positions must be in increasing order and not none, not {positions}")
        self.select = positions if isinstance(positions, slice) else dev.to_device(numbers)
        if numbers.size == T:
            self.select = None

    def __len__(self) -> int:
        return self.shape[0]


class GPT:
    """h = E[token] + positions;  per block: h += Attn(LN1(h)), h += MLP(LN2(h));  logits = LNf(h) E^T

    Attn: [q | k | v] = x W + b, W (C, 3C), causal softmax attention, output matrix. MLP: C -> 4C,
    phi, 4C -> C.
    positions   "rotary": q and k turned, no embedding;  "learned": + P[t], P (context, C);
                "digits": + P[t // digits] + D[t mod digits], P (ceil(context/digits), C), D
                (digits, C)
    bias        biases of the linear layers;  shift: bias of the LayerNorms
    tied        the output matrix is E; otherwise a matrix of its own, (V, C) too
    residual    the matrices whose initial scale is divided by sqrt(2 depth): they write into the residual stream
    recompute   keep the input of every block only and compute its activations again in backward: the same bits
    Sources: the code of Learning to grok (GPT.in_context) and of How can transformers predict
    pseudo-random numbers (GPT.numbers: one token a number; GPT.base_b: digits).
    """

    buffers: dict[str, tuple[int, ...]] = {}  # no state besides the parameters
    batchnorm = False
    by_neurons = False

    def __init__(
        self,
        vocab: int,
        width: int,
        depth: int,
        heads: int,
        context: int,
        positions="rotary",
        digits: int = 1,
        activation="relu",
        bias=False,
        shift=True,
        tied=True,
        residual=("mlp.out",),
        recompute=False,
    ):
        resolve(activation)
        sizes = dict(
            vocab=vocab, width=width, depth=depth, heads=heads, context=context, digits=digits
        )
        for what, value in sizes.items():
            if value < 1:
                raise InputError(f"{what} must be at least 1, not {value}")
        if positions not in POSITIONS:
            raise InputError(f"unknown positions {positions!r}: choose {', '.join(POSITIONS)}")
        if width % heads or (positions == "rotary" and (width // heads) % 2):
            raise InputError(
                f"width {width} does not split into {heads} heads"
                + " of even size" * (positions == "rotary")
            )
        self.vocab, self.width, self.depth, self.heads, self.context = (
            vocab,
            width,
            depth,
            heads,
            context,
        )
        self.positions, self.digits, self.activation = positions, digits, activation
        self.bias, self.shift, self.tied, self.residual, self.recompute = (
            bias,
            shift,
            tied,
            tuple(residual),
            recompute,
        )
        self._rotary: dict = {}  # angles and masks by device
        self._masks: dict = {}

    @classmethod
    def in_context(cls, vocab=47, width=512, depth=4, heads=4, context=512, **options) -> "GPT":
        """The decoder of Learning to grok: rotary positions, ReLU, no biases, LayerNorm with
        shift."""
        return cls(vocab, width, depth, heads, context, **options)

    @classmethod
    def numbers(cls, vocab=2048, width=768, depth=1, heads=1, context=256, **options) -> "GPT":
        """One token a number: learned positions, ReLU, no biases at all."""
        options = dict(positions="learned", shift=False, residual=("attn.out", "mlp.out")) | options
        return cls(vocab, width, depth, heads, context, **options)

    @classmethod
    def base_b(
        cls, base=256, width=1024, depth=2, heads=8, numbers=512, digits=4, **options
    ) -> "GPT":
        """Base-b digits: number and digit positions, GELU, biases everywhere but in the output
        matrix."""
        options = dict(activation="gelu", bias=True, residual=("attn.out", "mlp.out")) | options
        return cls(
            base,
            width,
            depth,
            heads,
            numbers * digits,
            positions="digits",
            digits=digits,
            **options,
        )

    # -- parameters --------------------------------------------------------------------------------

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        V, C = self.vocab, self.width
        shapes: dict[str, tuple[int, ...]] = {"embed.token": (V, C)}
        if self.positions != "rotary":
            shapes["embed.position"] = (-(-self.context // self.digits), C)
        if self.positions == "digits":
            shapes["embed.digit"] = (self.digits, C)

        def norm(name):
            return {f"{name}.gain": (C,)} | ({f"{name}.shift": (C,)} if self.shift else {})

        def linear(name, K, N):
            return {f"{name}.weight": (K, N)} | ({f"{name}.bias": (N,)} if self.bias else {})

        for i in range(self.depth):
            b = f"blocks.{i}."
            shapes |= (
                norm(b + "ln1") | linear(b + "attn.qkv", C, 3 * C) | linear(b + "attn.out", C, C)
            )
            shapes |= (
                norm(b + "ln2") | linear(b + "mlp.in", C, 4 * C) | linear(b + "mlp.out", 4 * C, C)
            )
        return shapes | norm("final") | ({} if self.tied else {"head": (V, C)})

    @property
    def no_decay(self) -> tuple[str, ...]:
        """Parameters without weight decay in both papers: those with one axis."""
        return tuple(name for name, shape in self.shapes.items() if len(shape) == 1)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def __repr__(self) -> str:
        size = (
            f"vocabulary {self.vocab}, width {self.width}, depth {self.depth}, {self.heads} heads"
        )
        return (
            f"GPT({size}, {self.positions} positions, {self.activation}, {self.size:,} parameters)"
        )

    def init(self, rng: np.random.Generator, std: float = 0.02) -> dict[str, np.ndarray]:
        """Fresh weights on the host, float64: gains 1, shifts and biases 0, matrices and embeddings
        Normal(0, std^2), those of `residual` divided by sqrt(2 depth), an untied output matrix by
        sqrt(width)."""
        weights = {}
        for name, shape in self.shapes.items():
            if len(shape) == 1:
                weights[name] = np.full(shape, 1.0 if name.endswith(".gain") else 0.0)
                continue
            scale = (
                std / math.sqrt(2 * self.depth)
                if name.endswith(tuple(f"{r}.weight" for r in self.residual))
                else std
            )
            scale /= math.sqrt(self.width) if name == "head" else 1.0
            weights[name] = scale * rng.standard_normal(shape)
        return weights

    def init_buffers(self) -> dict[str, np.ndarray]:
        return {}

    def prepare(self, dev: Device, inputs: np.ndarray) -> Tokens:
        """Host sequences (B, T), or (E, B, T) when members see different ones; all positions."""
        return Tokens(dev, inputs, self.vocab)

    # -- forward -----------------------------------------------------------------------------------

    def forward(
        self,
        dev: Device,
        w: dict,
        tokens: Tokens,
        mode: Mode = EVALUATION,
        record: bool = False,
        edit: Callable | None = None,
    ) -> tuple[Array, dict]:
        """Logits (..., B Tq, V) at the positions of `tokens`, and the tape. The last block computes
        queries, MLP and logits at the positions only. There is no dropout and no state: of the mode
        only the buffers concern it. edit(name, array) may change "blocks.i.attn.pattern" and ".out"
        in place before they are read; no backward then.

        tape: blocks.i.ln1, .attn.q (turned, over sqrt D), .attn.k, .attn.v, .attn.pattern (..., B,
        H, Tq, T), .attn.out (heads side by side), .ln2, .mlp.pre, .mlp.hidden; final, logits; with
        record also blocks.i.in, .mid, .end: the residual stream before, inside and after a block.
        With recompute and without record: blocks.i.in, final, logits."""
        lead = w["embed.token"].shape[:-2]
        B, T = tokens.shape
        buffer = mode.buffer or dev.fresh
        if self.context < T:
            raise InputError(f"a sequence of {T} tokens, but the context is {self.context}")
        u = w["embed.token"][..., None, :, :]
        h, embed = embedding_forward(
            dev, u, tokens.rows, buffer("residual", (*lead, B * T, self.width))
        )
        tape = {"embed": embed, "tokens": tokens, "weights": w, "buffer": buffer}
        self._add_positions(w, h.reshape(*lead, B, T, -1), 0)
        recompute = self.recompute and not record
        for i in range(self.depth):
            b, select = f"blocks.{i}.", tokens.select if i == self.depth - 1 else None
            if recompute or record:
                tape[b + "in"] = _copy(dev, h, buffer(b + "in", h.shape))
            h, part = self._block(
                dev,
                w,
                i,
                h,
                (B, T),
                select,
                "block." if recompute else b,
                buffer,
                record,
                edit=edit,
            )
            tape |= {} if recompute else part
        x, tape["final.norm"] = self._norm(dev, w, "final", h, "final", buffer)
        z = matmul(dev, x, self._output(w), buffer("logits", (*x.shape[:-1], self.vocab)), tb=True)
        return z, tape | {"final": x, "logits": z}

    def _output(self, w: dict) -> Array:
        return w["embed.token" if self.tied else "head"]

    def _norm(self, dev: Device, w: dict, name: str, h: Array, key: str, buffer):
        gain, shift = w[name + ".gain"], w.get(name + ".shift")
        return layernorm_forward(
            dev, h, gain, shift, 1e-5, buffer(key + ".xhat", h.shape), buffer(key, h.shape)
        )

    def _add_positions(self, w: dict, h: Array, start: int) -> None:
        """h (..., B, T, C) += embedding of the positions start, start + 1, ..."""
        if self.positions != "rotary":
            table = w["embed.position"][..., :, None, :]
            table = table + w["embed.digit"][..., None, :, :] if "embed.digit" in w else table
            h += table.reshape(*table.shape[:-3], -1, self.width)[
                ..., None, start : start + h.shape[-2], :
            ]

    def _angles(self, dev: Device, start: int, T: int) -> attention.Rotary:
        """The turns of positions start..start+T-1, made once for each device."""
        if dev not in self._rotary:
            self._rotary[dev] = attention.rotary_table_host(
                dev, self.context, self.width // self.heads, self.heads
            )
        return self._rotary[dev].at(slice(start, start + T))

    def _mask(self, dev: Device, T: int, select) -> Array:
        """The causal mask of a sequence, or its rows of some queries; made once for each device and
        length."""
        if (dev, T) not in self._masks:
            self._masks[dev, T] = attention.causal_mask_host(dev, range(T), T)
        return self._masks[dev, T] if select is None else self._masks[dev, T][select]

    def _attention(
        self,
        dev: Device,
        w: dict,
        b: str,
        x: Array,
        shape,
        select,
        key: str,
        buffer,
        past,
        start: int,
        edit,
    ):
        """Heads side by side (..., B Tq, C) and the tape of the attention of x (..., B T, C);
        queries at `select` only."""
        (B, T), C, lead = shape, self.width, x.shape[:-2]
        W, bias = w[b + "qkv.weight"], w.get(b + "qkv.bias")
        sequences = lambda a: a.reshape(*lead, B, -1, a.shape[-1])  # noqa: E731
        xq = _pick(dev, sequences(x), select, key + "x", buffer)
        bq, bkv = (None, None) if bias is None else (bias[..., :C], bias[..., C:])
        q, query = linear_forward(dev, xq, W[..., :C], bq, buffer(key + "q", xq.shape))
        kv, keys = linear_forward(
            dev, x, W[..., C:], bkv, buffer(key + "kv", (*lead, B * T, 2 * C))
        )
        q, k, v = sequences(q), sequences(kv)[..., :C], sequences(kv)[..., C:]
        turns = ()
        if self.positions == "rotary":
            t = self._angles(dev, start, T)
            tq = t if select is None else t.at(select)
            turns = (
                attention.rotary_forward(dev, q, tq, q)[1],
                attention.rotary_forward(dev, k, t, k)[1],
            )
        if past is not None:
            for new, old in ((k, past[0]), (v, past[1])):
                old[..., start : start + T, :] = new
            k, v = (old[..., : start + T, :] for old in past)
        pattern = buffer(key + "pattern", (self.heads, *lead, B, q.shape[-2], k.shape[-2]))
        mask = (
            None if start else self._mask(dev, T, select)
        )  # later than the start: one query, which sees all keys
        blocks = (
            attention.causal_blocks(dev, T) if select is None and not start else attention.WHOLE
        )
        seen, y = dev.xp.moveaxis(pattern, 0, -3), buffer(key + "out", q.shape)
        change = edit and (lambda _: edit(b + "pattern", seen))
        y, attend = attention.attention_forward(
            dev, q, k, v, self.heads, mask, y, pattern, change, blocks
        )
        if edit:
            edit(b + "out", y)
        tape = {"q": q, "k": k, "v": v, "pattern": seen, "out": y}
        tape["cache"] = query, keys, turns, attend
        return y.reshape(*lead, -1, C), {b + name: a for name, a in tape.items()}

    def _block(
        self,
        dev: Device,
        w: dict,
        i: int,
        h: Array,
        shape,
        select,
        key: str,
        buffer,
        record=False,
        past=None,
        start=0,
        end=True,
        edit=None,
    ):
        """The residual stream after block i and its part of the tape. Overwrites h (..., B T, C);
        `select`: only these positions go on. past: keys and values (..., B, context, C) of the
        tokens before `start`, to be read and added to. end=False: stop before the last product,
        which backward does not read."""
        b = f"blocks.{i}."
        x, ln1 = self._norm(dev, w, b + "ln1", h, key + "ln1", buffer)
        y, tape = self._attention(
            dev, w, b + "attn.", x, shape, select, key + "attn.", buffer, past, start, edit
        )
        h = _pick(dev, h.reshape(*h.shape[:-2], *shape, -1), select, key + "picked", buffer)
        y, out = linear_forward(
            dev, y, w[b + "attn.out.weight"], w.get(b + "attn.out.bias"), buffer("update", h.shape)
        )
        h += y
        tape |= {b + "mid": h.copy()} if record else {}
        z, ln2 = self._norm(dev, w, b + "ln2", h, key + "ln2", buffer)
        wide = buffer(key + "mlp.pre", (*z.shape[:-1], 4 * self.width))
        pre, inner = linear_forward(dev, z, w[b + "mlp.in.weight"], w.get(b + "mlp.in.bias"), wide)
        post = (
            pre if self.activation == "relu" else buffer(key + "mlp.hidden", pre.shape)
        )  # relu'(x) = relu'(relu(x))
        hidden, act = activation_forward(dev, pre, self.activation, post)
        W, bias = w[b + "mlp.out.weight"], w.get(b + "mlp.out.bias")
        if end:
            h += linear_forward(dev, hidden, W, bias, buffer("update", h.shape))[0]
        caches = {
            "ln1": ln1,
            "attn.out": out,
            "ln2": ln2,
            "mlp.in": inner,
            "act": act,
            "mlp.out": (hidden, W),
        }
        tape |= {
            b + "ln1": x,
            b + "ln2": z,
            b + "mlp.pre": pre,
            b + "mlp.hidden": hidden,
            b + "cache": caches,
        }
        return h, tape | ({b + "end": h.copy()} if record else {})

    # -- backward ----------------------------------------------------------------------------------

    def backward(
        self, dev: Device, dlogits: Array, tape: dict, g: dict, accumulate: bool = False
    ) -> None:
        """Write the gradient of every parameter into g, or add to g (a further shard of the batch).

        x = LNf(h):  dx = dz E,  dE = dz^T x + sum of dh over the tokens of a row (tied: both add to one array)
        dh -> dh + LN2'(MLP'(dh)) -> ... + LN1'(Attn'(...)) through every block, last to first
        dP[t // digits] and dD[t mod digits]: sums of dh at positions t over the batch
        """
        w, buffer, tokens, x = tape["weights"], tape["buffer"], tape["tokens"], tape["final"]
        output = "embed.token" if self.tied else "head"
        matmul(dev, dlogits, x, g[output], ta=True, accumulate=accumulate)
        dh = matmul(dev, dlogits, w[output], buffer("d.final", x.shape))
        layernorm_backward(
            dev, dh, tape["final.norm"], g["final.gain"], g.get("final.shift"), dh, accumulate
        )
        for i in reversed(range(self.depth)):
            select, b, part = tokens.select if i == self.depth - 1 else None, f"blocks.{i}.", tape
            if b + "cache" not in tape:
                h = _copy(dev, tape[b + "in"], buffer("residual", tape[b + "in"].shape))
                _, part = self._block(
                    dev, w, i, h, tokens.shape, select, "block.", buffer, end=False
                )
            dh = self._block_backward(dev, dh, part, i, tokens.shape, select, g, buffer, accumulate)
        embedding_backward(
            dev, dh, tape["embed"], g["embed.token"][..., None, :, :], accumulate or self.tied
        )
        if self.positions != "rotary":
            self._positions_backward(
                dev, dh.reshape(*dh.shape[:-2], *tokens.shape, -1).sum(axis=-3), g, accumulate
            )

    def _block_backward(
        self,
        dev: Device,
        dh: Array,
        tape: dict,
        i: int,
        shape,
        select,
        g: dict,
        buffer,
        accumulate: bool,
    ):
        """The gradient of the residual stream before block i; overwrites that after it, dh (..., B
        Tq, C)."""
        b, lead, C, (B, T) = f"blocks.{i}.", dh.shape[:-2], self.width, shape
        c, (query, keys, turns, attend) = tape[b + "cache"], tape[b + "attn.cache"]

        def linear(dy, cache, name, dx, columns=slice(None)):
            dw, db = (
                g[name + ".weight"][..., columns],
                g[name + ".bias"][..., columns] if self.bias else None,
            )
            return linear_backward(dev, dy, cache, dw, db, dx, accumulate=accumulate)

        def norm(dy, name):
            return layernorm_backward(
                dev, dy, c[name], g[f"{b}{name}.gain"], g.get(f"{b}{name}.shift"), dy, accumulate
            )

        dhidden = linear(dh, c["mlp.out"], b + "mlp.out", buffer("d.hidden", c["mlp.out"][0].shape))
        activation_backward(dev, dhidden, c["act"], dx=dhidden)
        dx = linear(dhidden, c["mlp.in"], b + "mlp.in", buffer("d.update", dh.shape))
        dh += norm(dx, "ln2")
        dy = linear(dh, c["attn.out"], b + "attn.out", dx).reshape(*lead, B, -1, C)
        dq, dkv = buffer("d.q", dy.shape), buffer("d.kv", (*lead, B, T, 2 * C))
        attention.attention_backward(dev, dy, attend, dq, dkv[..., :C], dkv[..., C:])
        for a, turn in zip(
            (dq, dkv[..., :C]), turns, strict=False
        ):  # no turns without rotary positions
            attention.rotary_backward(dev, a, turn, a)
        full = linear(
            dkv.reshape(*lead, -1, 2 * C),
            keys,
            b + "attn.qkv",
            buffer(f"d.full{i % 2}", (*lead, B * T, C)),
            slice(C, None),
        )
        linear(dq.reshape(*lead, -1, C), query, b + "attn.qkv", dx, slice(C))
        _add_at(full, select, shape, dx)
        norm(full, "ln1")
        _add_at(full, select, shape, dh)
        return full

    def stages(self, dev: Device, w: dict) -> list[Stage]:
        """The blocks as maps of the residual stream (B, T, C), for Jacobians; gradients of
        parameters are thrown away."""
        waste = {name: dev.empty(shape) for name, shape in self.shapes.items()}

        def stage(i: int) -> Stage:
            def forward(x: Array):
                h = x.reshape(-1, self.width).copy()
                y, tape = self._block(dev, w, i, h, x.shape[:2], None, f"blocks.{i}.", dev.fresh)
                return y.reshape(x.shape), tape

            def backward(dy: Array, tape: dict) -> Array:
                dh = dy.reshape(-1, self.width).copy()
                return self._block_backward(
                    dev, dh, tape, i, dy.shape[:2], None, waste, dev.fresh, False
                ).reshape(dy.shape)

            return Stage(f"blocks.{i}", forward, backward)

        return [stage(i) for i in range(self.depth)]

    def _positions_backward(self, dev: Device, dp: Array, g: dict, accumulate: bool) -> None:
        """dp (..., T, C), the gradient of what was added at every position -> the tables'
        gradients; unused rows get 0."""
        shape = *g["embed.position"].shape[:-1], self.digits, self.width
        full = dev.zeros(shape)
        full.reshape(*shape[:-3], -1, self.width)[..., : dp.shape[-2], :] = dp
        for name, axis in (("embed.position", -2), ("embed.digit", -3)):
            if name in g:
                g[name][...] = full.sum(axis=axis) + (g[name] if accumulate else 0.0)

    # -- generation --------------------------------------------------------------------------------

    def generate(self, dev: Device, w: dict, tokens: np.ndarray, count: int) -> Array:
        """The most likely continuation, token by token: host integers (B, T0) or (E, B, T0) ->
        device (..., B, count).

        Keys and values of earlier tokens are kept, so a token costs one query; nothing waits for
        the device."""
        start = Tokens(dev, tokens, self.vocab, slice(-1, None))
        lead, (B, T), C = w["embed.token"].shape[:-2], start.shape, self.width
        if T + count - 1 > self.context:
            raise InputError(
                f"{T} tokens and {count} more do not fit the context of {self.context}"
            )
        past = [
            tuple(dev.empty((*lead, B, T + count - 1, C)) for _ in "kv") for _ in range(self.depth)
        ]
        h, _ = embedding_forward(dev, w["embed.token"][..., None, :, :], start.rows)
        result, at = dev.empty((*lead, B, count), "int64"), 0
        for n in range(count):
            self._add_positions(w, h.reshape(*lead, B, T, C), at)
            for i in range(self.depth):
                select = start.select if n == 0 and i == self.depth - 1 else None
                h, _ = self._block(
                    dev, w, i, h, (B, T), select, "", dev.fresh, past=past[i], start=at
                )
            x, _ = self._norm(dev, w, "final", h, "", dev.fresh)
            result[..., n] = matmul(dev, x, self._output(w), tb=True).argmax(axis=-1)
            h = dev.xp.take_along_axis(w["embed.token"], result[..., n, None], axis=-2)
            at, T = at + T, 1
        return result


def _copy(dev: Device, x: Array, out: Array) -> Array:
    dev.xp.copyto(out, x)
    return out


def _pick(dev: Device, x: Array, select, key: str, buffer) -> Array:
    """Rows (..., B Tq, C) of x (..., B, T, C) at some positions; all rows are not copied."""
    if select is not None:
        x = x[..., select, :]
        x = _copy(dev, x, buffer(key, x.shape))
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _add_at(x: Array, select, shape, update: Array) -> None:
    """x (..., B T, C) += update (..., B Tq, C) at some positions"""
    x = x.reshape(*x.shape[:-2], *shape, -1)
    x[..., slice(None) if select is None else select, :] += update.reshape(
        *x.shape[:-2], -1, x.shape[-1]
    )
