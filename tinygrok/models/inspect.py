"""A trained decoder, opened: its logits, attention maps, head outputs and residual streams as host
arrays, for the probes."""

from collections.abc import Callable

import numpy as np

from ..engine.device import Array, Device
from ..engine.gemm import matmul
from ..engine.params import Arena
from ..ops.norm import layernorm_forward
from .gpt import GPT, Tokens

Edit = Callable[
    [str, Array, np.ndarray], None
]  # (name, array, rows): changes array, of these rows of the tokens, in place
SHARD_BYTES = {
    "cpu": 4_000_000,
    "cuda": 400_000_000,
}  # of the widest activation (rows, tokens, 4 C or V)


class Decoder:
    """A decoder with its weights on a device. It reads tokens (B, T), or triples (B, n, 3) of
    numbers x, y, z below p, T = 3 n.

    C channels, H heads. Rows are cut into shards, spread over the worker threads.
    """

    def __init__(
        self, dev: Device, model: GPT, weights: dict[str, np.ndarray], p: int | None = None
    ):
        self.dev, self.model, self.p = dev, model, p
        params = Arena(dev, model.shapes)
        params.load(weights)
        self.weights = params.views

    def _run(
        self,
        tokens: np.ndarray,
        positions,
        read: Callable[[Array, dict], Array],
        edit: Edit | None = None,
    ) -> np.ndarray:
        """read(logits, tape) of every shard, joined along the first axis. positions None: the tape
        holds everything."""
        tokens = tokens.reshape(len(tokens), -1)
        tokens = tokens[:, :-1] if positions is not None else tokens  # the last z is not read
        widest = tokens.size * max(4 * self.model.width, self.model.vocab) * self.dev.dtype.itemsize
        count = min(len(tokens), -(-widest // SHARD_BYTES[self.dev.kind]))

        def part(rows):
            inputs = Tokens(self.dev, tokens[rows], self.model.vocab, positions)
            change = edit and (lambda name, x: edit(name, x, rows))
            z, tape = self.model.forward(
                self.dev, self.weights, inputs, record=positions is None, edit=change
            )
            return self.dev.to_host(read(z, tape))

        return np.concatenate(self.dev.map(part, np.array_split(np.arange(len(tokens)), count)))

    def predict(self, tokens: np.ndarray, edit: Edit | None = None) -> np.ndarray:
        """(B, T): the most likely next token at every position."""
        return self._run(
            tokens, None, lambda z, tape: z.argmax(axis=-1).reshape(-1, tokens[0].size), edit
        )

    def read(self, tokens: np.ndarray, name: str) -> np.ndarray:
        """What the tape of GPT.forward holds under a name."""
        return self._run(tokens, None, lambda z, tape: tape[name])

    def top_k(self, k: int) -> Edit:
        """Attention to the k keys of the highest scores only, chosen among those that the causal
        mask leaves:

        softmax over these k scores, which is the pattern's k largest entries divided by their
        sum."""

        def edit(name, x, rows):
            if name.endswith("pattern"):
                x *= x >= self.dev.xp.sort(x, axis=-1)[..., -min(k, x.shape[-1]), None]
                x /= x.sum(axis=-1, keepdims=True)

        return edit

    def set_head(self, block: int, head: int, values: float | np.ndarray) -> Edit:
        """The head's slice of the output matrix' input replaced: by a number, a vector (D,), or a
        donor's slice (B, T, D)."""

        def edit(name, x, rows):
            if name == f"blocks.{block}.attn.out":
                new = values if np.ndim(values) < 3 else values[rows]
                x.reshape(*x.shape[:-1], self.model.heads, -1)[..., head, :] = self.dev.to_device(
                    new
                )

        return edit

    def logits(self, triples: np.ndarray) -> np.ndarray:
        """(B, n, p): at every y of triples, for the numbers 0..p-1."""
        shape = *triples.shape[:2], self.model.vocab
        return self._run(triples, slice(1, None, 3), lambda z, tape: z).reshape(shape)[
            ..., : self.p
        ]

    def patterns(self, tokens: np.ndarray) -> np.ndarray:
        """(B, depth, H, T, T): attention, rows of queries."""
        blocks = range(self.model.depth)
        return self._run(
            tokens,
            None,
            lambda z, tape: self._stack([tape[f"blocks.{i}.attn.pattern"] for i in blocks]),
        )

    def heads(self, tokens: np.ndarray, at) -> np.ndarray:
        """(B, depth, H, len(at), C): what head h of block i adds to the residual stream at some
        positions,

        (A_h v_h) W_h, W_h the rows of the output matrix that belong to the head."""
        H, C, T, xp = self.model.heads, self.model.width, tokens[0].size, self.dev.xp
        at = self.dev.to_device(at)

        def read(z, tape):
            y = [
                tape[f"blocks.{i}.attn.out"].reshape(-1, T, H, C // H)[:, at]
                for i in range(self.model.depth)
            ]
            W = [
                self.weights[f"blocks.{i}.attn.out.weight"].reshape(H, C // H, C)
                for i in range(self.model.depth)
            ]
            return self._stack(
                [xp.matmul(xp.moveaxis(a, 2, 1), w) for a, w in zip(y, W, strict=True)]
            )

        return self._run(tokens, None, read)

    def residuals(self, tokens: np.ndarray, at) -> np.ndarray:
        """(B, depth, len(at), C): the residual stream after every block at some positions."""
        at = self.dev.to_device(at)
        return self._run(tokens, None, lambda z, tape: self._streams(tape, tokens)[:, 1:][:, :, at])

    def lens(self, triples: np.ndarray) -> np.ndarray:
        """(B, depth + 1, n, p): logits LNf(h) E^T of the residual stream h before block 0, after
        block 0, 1, ..., at every y.

        The last of them are the model's own. (Logit lens.)"""
        w = self.weights

        def read(z, tape):
            h = self._streams(tape, triples)[:, :, 1::3]
            x, _ = layernorm_forward(self.dev, h, w["final.gain"], w.get("final.shift"))
            logits = matmul(
                self.dev,
                x.reshape(-1, x.shape[-1]),
                w["embed.token" if self.model.tied else "head"],
                tb=True,
            )
            return logits.reshape(*x.shape[:-1], -1)[..., : self.p]

        return self._run(triples, None, read)

    def _streams(self, tape: dict, tokens: np.ndarray) -> Array:
        """(B, depth + 1, T, C): the residual stream before the first block and after every
        block."""
        names = ["blocks.0.in", *(f"blocks.{i}.end" for i in range(self.model.depth))]
        return self._stack(
            [tape[name].reshape(-1, tokens[0].size, self.model.width) for name in names]
        )

    def _stack(self, parts: list[Array]) -> Array:
        return self.dev.xp.stack(parts, axis=1)
