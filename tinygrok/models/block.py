"""A block of the decoder, forward and backward:  h += Attn(LN1(h)),  then  h += MLP(LN2(h)).

The mathematics stands in four functions, attention and MLP each with its backward below; how a pass
is made (buffers, selected positions, keys of earlier tokens, records) in BlockPass. The norm is
LayerNorm, or none, in three functions, and nothing else here or in the decoder knows that: another
one changes these three. f'(dy) in a formula is the backward of f: its transposed Jacobian times dy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ..engine.device import Array, Device
from ..ops import activation, attention, linear, norm
from .protocol import Shapes


class Past(NamedTuple):
    """Keys and values (..., B, context, C) of the tokens before position `start` of a sequence, to
    be read and added to."""

    keys: Array
    values: Array
    start: int

    def extended(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Those of all tokens so far, the new ones k, v (..., B, T, C) with them."""
        stop = self.start + k.shape[-2]
        self.keys[..., self.start : stop, :] = k
        self.values[..., self.start : stop, :] = v
        return self.keys[..., :stop, :], self.values[..., :stop, :]


class BlockPass(NamedTuple):
    """How a pass through a block is made: all that is not its mathematics.

    dev         device
    w           weights by name
    shape       (B, T) of the sequences; the residual stream h has shape (..., B T, C)
    buffer      buffer(name, shape) supplies an array that belongs to the name
    name        "blocks.0." of a block, before the names of its parameters and of its arrays on the
                tape; "" outside blocks
    select      the positions that go on once keys and values are there; None: all
    past        keys and values of earlier tokens (generation)
    edit        edit(name, array) may change "blocks.0.attn.pattern" and ".out" in place before they
                are read
    record      copy the residual stream before, inside and after a block onto the tape
    recompute   activations are not kept: all blocks use the same buffers for them
    complete    False: stop before the block's last product, which backward does not read
    g           gradients by name, to write; None: a pass forward
    accumulate  add to the gradients
    """

    dev: Device
    w: dict
    shape: tuple[int, int]
    buffer: Callable
    name: str = ""
    select: Array | slice | None = None
    past: Past | None = None
    edit: Callable[[str, Array], None] | None = None
    record: bool = False
    recompute: bool = False
    complete: bool = True
    g: Any = None
    accumulate: bool = False

    def keep(self, name: str, shape: tuple[int, ...]) -> Array:
        """An array for what backward reads: one for every block, unless activations are recomputed.

        What is used up inside a block ("update", "d.q", ...) comes from `buffer` under a name that
        all blocks share, so that it stays in cache and memory does not grow with depth."""
        prefix = "block." if self.recompute else self.name
        return self.buffer(prefix + name, shape)

    def sequences(self, x: Array) -> Array:
        """(..., B T, C) -> (..., B, T, C), a view"""
        return x.reshape(*x.shape[:-2], self.shape[0], -1, x.shape[-1])

    def pick(self, x: Array, name: str) -> Array:
        """Rows (..., B Tq, C) of x (..., B T, C) at the selected positions; x itself for all."""
        if self.select is None:
            return x
        picked = self.sequences(x)[..., self.select, :]
        return rows(copy_to(self.dev, picked, self.keep(name, picked.shape)))

    def named(self, tape: dict) -> dict:
        """The block's part of the tape, under the names of the decoder."""
        return {self.name + name: x for name, x in tape.items()}


def rows(x: Array) -> Array:
    """(..., B, T, C) -> (..., B T, C)"""
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def copy_to(dev: Device, x: Array, out: Array) -> Array:
    """out, with what x holds."""
    dev.xp.copyto(out, x)
    return out


def _add_at(p: BlockPass, x: Array, update: Array) -> None:
    """x (..., B T, C) += update (..., B Tq, C) at the selected positions"""
    select = slice(None) if p.select is None else p.select
    p.sequences(x)[..., select, :] += p.sequences(update)


# -- layers by the names of their parameters -------------------------------------------------------


def norm_shapes(name: str, C: int, shift: bool, norm: bool) -> Shapes:
    """Parameters of a norm over C channels, with a shift or not; {} where there is no norm."""
    if not norm:
        return {}
    shapes: Shapes = {name + ".gain": (C,)}
    if shift:
        shapes[name + ".shift"] = (C,)
    return shapes


def norm_forward(p: BlockPass, name: str, h: Array) -> tuple[Array, tuple]:
    """y = LayerNorm(h) (ops.norm.layernorm_forward), and the cache; without a gain y = h, a copy,
    since h goes on to change in place"""
    gain = p.w.get(p.name + name + ".gain")
    if gain is None:
        return copy_to(p.dev, h, p.keep(name, h.shape)), ()
    shift = p.w.get(p.name + name + ".shift")
    xhat = p.keep(name + ".xhat", h.shape)
    out = p.keep(name, h.shape)
    return norm.layernorm_forward(p.dev, h, gain, shift, xhat=xhat, out=out)


def norm_backward(p: BlockPass, name: str, dy: Array, cache: tuple) -> Array:
    """dh = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)),  dxhat = gain dy

    in the memory of dy; means over the channels. dgain = sum of dy xhat and dshift = sum of dy over
    the rows go to p.g (ops.norm.layernorm_backward). Without a norm dh = dy."""
    if not cache:
        return dy
    dgain = p.g[p.name + name + ".gain"]
    dshift = p.g.get(p.name + name + ".shift")
    return norm.layernorm_backward(p.dev, dy, cache, dgain, dshift, dx=dy, accumulate=p.accumulate)


def linear_shapes(name: str, K: int, N: int, bias: bool) -> Shapes:
    """Parameters of a linear layer from K to N channels, with a bias or not."""
    shapes: Shapes = {name + ".weight": (K, N)}
    if bias:
        shapes[name + ".bias"] = (N,)
    return shapes


def _linear_parameters(p: BlockPass, source: dict, name: str, columns: slice | None) -> tuple:
    """Weight and bias, or None, of a linear layer, or some of its columns."""
    weight = source[p.name + name + ".weight"]
    bias = source.get(p.name + name + ".bias")
    if columns is None:
        return weight, bias
    return weight[..., columns], None if bias is None else bias[..., columns]


def linear_forward(p: BlockPass, name: str, x: Array, out: Array, columns=None) -> Array:
    """y = x W + b, at some columns of W and b"""
    W, b = _linear_parameters(p, p.w, name, columns)
    y, _ = linear.linear_forward(p.dev, x, W, b, out)
    return y


def linear_backward(
    p: BlockPass, name: str, dy: Array, x: Array, out: Array, columns=None
) -> Array:
    """dx = dy W^T, written into out        dW = x^T dy        db = sum of dy over rows"""
    W, _ = _linear_parameters(p, p.w, name, columns)
    dW, db = _linear_parameters(p, p.g, name, columns)
    return linear.linear_backward(p.dev, dy, (x, W), dW, db, out, accumulate=p.accumulate)


# -- the block -------------------------------------------------------------------------------------


@dataclass(eq=False)
class Block:
    """h += Attn(LN1(h)), then h += MLP(LN2(h)): what all blocks of a decoder have in common.

    Attn: [q | k | v] = x W + b, W (C, 3C), causal attention of H heads, output matrix (C, C).
    MLP: C -> 4C, phi, 4C -> C. With rotary positions q and k are turned; norm=False leaves LN1
    and LN2 out; scale is that of attention_forward. Which block's parameters are meant,
    BlockPass.name says.
    """

    width: int
    heads: int
    context: int
    activation: str
    bias: bool
    shift: bool
    rotary: bool
    norm: bool = True
    scale: float | None = None

    def __post_init__(self):
        self._angles: dict[Device, attention.Rotary] = {}
        self._masks: dict[tuple[Device, int], Array] = {}

    @property
    def shapes(self) -> Shapes:
        """Parameters of one block."""
        C = self.width
        return {
            **norm_shapes("ln1", C, self.shift, self.norm),
            **linear_shapes("attn.qkv", C, 3 * C, self.bias),
            **linear_shapes("attn.out", C, C, self.bias),
            **norm_shapes("ln2", C, self.shift, self.norm),
            **linear_shapes("mlp.in", C, 4 * C, self.bias),
            **linear_shapes("mlp.out", 4 * C, C, self.bias),
        }

    def forward(self, p: BlockPass, h: Array) -> tuple[Array, dict]:
        """The residual stream after the block, at the selected positions, and the block's part of
        the tape. Overwrites h (..., B T, C)."""
        h, attn = self.attention_sublayer_forward(p, h)
        h, mlp = self.mlp_sublayer_forward(p, h)
        return h, attn | mlp

    def backward(self, p: BlockPass, dh: Array, tape: dict, out: Array) -> Array:
        """The gradient of the residual stream before the block, written into out (..., B T, C).
        Overwrites dh (..., B Tq, C), that of the stream after it."""
        dh = self.mlp_sublayer_backward(p, dh, tape)
        return self.attention_sublayer_backward(p, dh, tape, out)

    def attention_sublayer_forward(self, p: BlockPass, h: Array) -> tuple[Array, dict]:
        """h += y W_out + b_out,  y = Attn(q, k, v),  [q | k | v] = x W + b,  x = LN1(h)

        k and v have all positions, q, y and the h that is returned the selected ones."""
        C = self.width
        x, ln1 = norm_forward(p, "ln1", h)
        xq = p.pick(x, "attn.x")
        q = linear_forward(p, "attn.qkv", xq, p.keep("attn.q", xq.shape), slice(C))
        kv = p.keep("attn.kv", (*x.shape[:-1], 2 * C))
        kv = linear_forward(p, "attn.qkv", x, kv, slice(C, None))
        q = p.sequences(q)
        k = p.sequences(kv)[..., :C]
        v = p.sequences(kv)[..., C:]
        turns = self._turn(p, q, k) if self.rotary else None
        if p.past is not None:
            k, v = p.past.extended(k, v)
        y, pattern, attend = self._attend(p, q, k, v)

        h = p.pick(h, "picked")
        h += linear_forward(p, "attn.out", rows(y), p.buffer("update", h.shape))

        tape = {"ln1": x, "attn.q": q, "attn.k": k, "attn.v": v, "attn.pattern": pattern}
        tape |= {"attn.out": y, "attn.cache": (ln1, xq, turns, attend)}
        if p.record:
            tape["mid"] = h.copy()
        return h, p.named(tape)

    def attention_sublayer_backward(self, p: BlockPass, dh: Array, tape: dict, out: Array) -> Array:
        """dh + LN1'(dx),  dx = [dq | dk | dv] W^T,  dq, dk, dv = Attn'(dy),  dy = dh W_out^T

        Rotary positions: dq and dk are turned back first. dx from k and v reaches all positions,
        dx from q and dh itself the selected ones. Gradients of parameters go to p.g."""
        C = self.width
        ln1, xq, turns, attend = tape[p.name + "attn.cache"]
        x = tape[p.name + "ln1"]
        y = tape[p.name + "attn.out"]
        update = p.buffer("d.update", dh.shape)
        dy = linear_backward(p, "attn.out", dh, rows(y), update)

        dq = p.buffer("d.q", y.shape)
        dkv = p.buffer("d.kv", (*y.shape[:-2], p.shape[1], 2 * C))
        dk = dkv[..., :C]
        dv = dkv[..., C:]
        attention.attention_backward(p.dev, p.sequences(dy), attend, dq, dk, dv)
        if turns is not None:
            turned_q, turned_k = turns
            attention.rotary_backward(p.dev, dq, turned_q, dq)
            attention.rotary_backward(p.dev, dk, turned_k, dk)

        dx = linear_backward(p, "attn.qkv", rows(dkv), x, out, slice(C, None))
        dxq = linear_backward(p, "attn.qkv", rows(dq), xq, update, slice(C))  # dy is used up
        _add_at(p, dx, dxq)
        dx = norm_backward(p, "ln1", dx, ln1)
        _add_at(p, dx, dh)
        return dx

    def mlp_sublayer_forward(self, p: BlockPass, h: Array) -> tuple[Array, dict]:
        """h += hidden W_out + b_out,  hidden = phi(pre),  pre = z W_in + b_in,  z = LN2(h)"""
        z, ln2 = norm_forward(p, "ln2", h)
        pre = p.keep("mlp.pre", (*z.shape[:-1], 4 * self.width))
        pre = linear_forward(p, "mlp.in", z, pre)
        in_place = self.activation == "relu"  # relu'(x) = relu'(relu(x)): x is not needed again
        hidden = pre if in_place else p.keep("mlp.hidden", pre.shape)
        hidden, act = activation.activation_forward(p.dev, pre, self.activation, hidden)
        if p.complete:
            h += linear_forward(p, "mlp.out", hidden, p.buffer("update", h.shape))

        tape = {"ln2": z, "mlp.pre": pre, "mlp.hidden": hidden, "mlp.cache": (ln2, act)}
        if p.record:
            tape["end"] = h.copy()
        return h, p.named(tape)

    def mlp_sublayer_backward(self, p: BlockPass, dh: Array, tape: dict) -> Array:
        """dhidden = dh W_out^T,  dpre = phi'(pre) dhidden,  dz = dpre W_in^T,  dh += LN2'(dz)

        dW_out = hidden^T dh, dW_in = z^T dpre, the sums of dh and dpre over the rows for b_out and
        b_in, and the gradients of LN2 go to p.g."""
        ln2, act = tape[p.name + "mlp.cache"]
        z = tape[p.name + "ln2"]
        hidden = tape[p.name + "mlp.hidden"]
        dhidden = linear_backward(p, "mlp.out", dh, hidden, p.buffer("d.hidden", hidden.shape))
        dpre = activation.activation_backward(p.dev, dhidden, act, dx=dhidden)
        dz = linear_backward(p, "mlp.in", dpre, z, p.buffer("d.update", dh.shape))
        dh += norm_backward(p, "ln2", dz, ln2)
        return dh

    # -- attention among positions -----------------------------------------------------------------

    def _turn(self, p: BlockPass, q: Array, k: Array) -> tuple:
        """Rotary positions: turns q and k in place. What turning back needs of each."""
        if p.dev not in self._angles:
            size = self.width // self.heads
            self._angles[p.dev] = attention.rotary_table_host(p.dev, self.context, size, self.heads)
        start = 0 if p.past is None else p.past.start
        keys = self._angles[p.dev].at(slice(start, start + p.shape[1]))
        queries = keys if p.select is None else keys.at(p.select)
        _, turned_q = attention.rotary_forward(p.dev, q, queries, q)
        _, turned_k = attention.rotary_forward(p.dev, k, keys, k)
        return turned_q, turned_k

    def _attend(self, p: BlockPass, q: Array, k: Array, v: Array) -> tuple[Array, Array, tuple]:
        """y = A v, the pattern A (..., B, H, Tq, T) and the cache of attention."""
        y = p.keep("attn.out", q.shape)
        pattern = p.keep("attn.pattern", (self.heads, *q.shape[:-1], k.shape[-2]))
        seen = p.dev.xp.moveaxis(pattern, 0, -3)
        mask = self._mask(p)
        every = mask is not None and p.select is None
        blocks = attention.causal_blocks(p.dev, p.shape[1]) if every else attention.WHOLE

        edit = None if p.edit is None else partial(p.edit, p.name + "attn.pattern")
        y, cache = attention.attention_forward(
            p.dev, q, k, v, self.heads, mask, y, pattern, edit, blocks, self.scale
        )
        if p.edit is not None:
            p.edit(p.name + "attn.out", y)
        return y, seen, cache

    def _mask(self, p: BlockPass) -> Array | None:
        """The causal mask of a sequence, or its rows of the selected queries. None for a token that
        comes after others in generation: the one query sees all keys."""
        if p.past is not None and p.past.start > 0:
            return None
        T = p.shape[1]
        if (p.dev, T) not in self._masks:  # made once for each device and length
            self._masks[p.dev, T] = attention.causal_mask_host(p.dev, range(T), T)
        mask = self._masks[p.dev, T]
        return mask if p.select is None else mask[p.select]
