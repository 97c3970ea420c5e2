"""What a network computes, as host arrays, for the probes: the tape of any model, and a trained
decoder, opened, with its logits, attention maps, head outputs and residual streams."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from ..engine.device import Array, Device, get_device
from ..engine.params import Arena
from .block import BlockPass
from .gpt import GPT
from .protocol import Model
from .tokens import Tokens

SHARD_BYTES = {"cpu": 4_000_000, "cuda": 400_000_000}  # of the widest activation of a shard


class Edit(Protocol):
    """An intervention: may change x, which has a name and belongs to these rows of the tokens, in
    place (GPT.forward, edit)."""

    def __call__(self, name: str, x: Array, rows: np.ndarray) -> None: ...


def run_with_tape(
    model: Model, weights: dict, inputs: Any, device: str = "cpu", dtype: str = "float64"
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(logits, tape): what a network computes for host inputs, every array by its name.

    model     a two-layer network, a GPT or a chain; in evaluation, all positions
    weights   host arrays by name; buffers that are missing have their first values
    inputs    what model.prepare takes: (S, B) for a two-layer network, tokens (B, T) for a GPT,
              images (B, H, W, C) for a chain
    The names are listed in the model's forward; of a GPT the residual streams are among them. All
    arrays are on the host.

    >>> import numpy as np
    >>> net = GPT(vocab=11, width=16, depth=2, heads=4, context=8)
    >>> weights = net.init(np.random.default_rng(0), std=0.5)
    >>> logits, tape = run_with_tape(net, weights, np.array([[3, 1, 4, 1, 5]]))
    >>> tape["blocks.0.attn.pattern"][0, 0, 1].round(2)  # what token 1 looks at, first head
    array([0.53, 0.47, 0.  , 0.  , 0.  ])
    >>> logits.shape, tape["blocks.1.end"].shape  # rows are tokens
    ((5, 11), (5, 16))
    """
    dev = get_device(device, dtype)
    arrays = model.init_buffers() | weights
    w = {name: dev.to_device(x) for name, x in arrays.items()}
    prepared = model.prepare(dev, inputs)
    options: dict[str, Any] = {"record": True} if isinstance(model, GPT) else {}
    z, tape = model.forward(dev, w, prepared, **options)
    # The rest is what only backward reads.
    seen = {name: x for name, x in tape.items() if isinstance(x, dev.xp.ndarray)}
    return dev.to_host(z), {name: dev.to_host(x) for name, x in seen.items()}


class Decoder:
    """A decoder with its weights on a device, and what it computes as host arrays.

    It reads tokens (B, T), or triples (B, n, 3) of numbers x, y, z below p, T = 3 n. C channels, H
    heads. Rows are cut into shards, spread over the worker threads.

    >>> import numpy as np
    >>> from tinygrok.engine.device import get_device
    >>> net = GPT(vocab=11, width=16, depth=2, heads=4, context=9)
    >>> weights = net.init(np.random.default_rng(0), std=0.5)
    >>> decoder = Decoder(get_device("cpu", "float64"), net, weights, p=7)
    >>> triples = np.array([[[1, 2, 3], [2, 2, 4], [3, 1, 4]]])
    >>> decoder.logits(triples).shape, decoder.patterns(triples).shape
    ((1, 3, 7), (1, 2, 4, 9, 9))
    >>> decoder.predict(triples)
    array([[ 1,  8,  3,  8,  8,  4,  8, 10,  4]])
    >>> decoder.predict(triples, decoder.set_head(block=0, head=1, values=0.0))  # without a head
    array([[ 1,  8,  3,  1,  1,  4,  8, 10,  1]])
    """

    def __init__(
        self, dev: Device, model: GPT, weights: dict[str, np.ndarray], p: int | None = None
    ):
        self.dev = dev
        self.model = model
        self.p = p
        params = Arena(dev, model.shapes)
        params.load(weights)
        self.weights = params.views

    # -- runs --------------------------------------------------------------------------------------

    def _run_host(
        self, tokens: np.ndarray, positions: slice | None, read: Callable, edit: Edit | None = None
    ) -> np.ndarray:
        """read(logits, tape) of every shard, joined along the first axis. positions None: the tape
        holds everything."""
        tokens = tokens.reshape(len(tokens), -1)
        if positions is not None:
            tokens = tokens[:, :-1]  # the last z is not read
        channels = max(4 * self.model.width, self.model.vocab)
        widest = tokens.size * channels * self.dev.dtype.itemsize
        shards = -(-widest // SHARD_BYTES[self.dev.kind])
        count = min(len(tokens), shards)

        def part(rows: np.ndarray) -> np.ndarray:
            inputs = Tokens(self.dev, tokens[rows], self.model.vocab, positions)
            change = None if edit is None else partial(edit, rows=rows)
            z, tape = self.model.forward(
                self.dev, self.weights, inputs, record=positions is None, edit=change
            )
            return self.dev.to_host(read(z, tape))

        parts = np.array_split(np.arange(len(tokens)), count)
        return np.concatenate(self.dev.map(part, parts))

    def predict(self, tokens: np.ndarray, edit: Edit | None = None) -> np.ndarray:
        """(B, T): the most likely next token at every position."""
        T = tokens[0].size

        def most_likely(z: Array, tape: dict) -> Array:
            return z.argmax(axis=-1).reshape(-1, T)

        return self._run_host(tokens, None, most_likely, edit)

    def read(self, tokens: np.ndarray, name: str) -> np.ndarray:
        """What the tape of GPT.forward holds under a name."""
        return self._run_host(tokens, None, lambda z, tape: tape[name])

    def logits(self, triples: np.ndarray) -> np.ndarray:
        """(B, n, p): at every y of triples, for the numbers 0..p-1."""
        B, n, _ = triples.shape
        z = self._run_host(triples, slice(1, None, 3), lambda z, tape: z)
        return z.reshape(B, n, self.model.vocab)[..., : self.p]

    def patterns(self, tokens: np.ndarray) -> np.ndarray:
        """(B, depth, H, T, T): attention, rows of queries."""

        def read(z: Array, tape: dict) -> Array:
            return self._stack([tape[block + "attn.pattern"] for block in self._blocks()])

        return self._run_host(tokens, None, read)

    def heads(self, tokens: np.ndarray, at) -> np.ndarray:
        """(B, depth, H, len(at), C): what head h of block i adds to the residual stream at some
        positions,

        (A_h v_h) W_h, W_h the rows of the output matrix that belong to the head."""
        T = tokens[0].size
        H = self.model.heads
        C = self.model.width
        D = C // H
        at = self.dev.to_device(at)
        xp = self.dev.xp

        def read(z: Array, tape: dict) -> Array:
            added = []
            for block in self._blocks():
                y = tape[block + "attn.out"].reshape(-1, T, H, D)
                y = xp.moveaxis(y[:, at], 2, 1)
                W = self.weights[block + "attn.out.weight"].reshape(H, D, C)
                added.append(xp.matmul(y, W))
            return self._stack(added)

        return self._run_host(tokens, None, read)

    def residuals(self, tokens: np.ndarray, at) -> np.ndarray:
        """(B, depth, len(at), C): the residual stream after every block at some positions."""
        T = tokens[0].size
        at = self.dev.to_device(at)

        def read(z: Array, tape: dict) -> Array:
            after = self._streams(tape, T)[:, 1:]
            return after[:, :, at]

        return self._run_host(tokens, None, read)

    def lens(self, triples: np.ndarray) -> np.ndarray:
        """(B, depth + 1, n, p): logits LNf(h) E^T of the residual stream h before block 0, after
        block 0, 1, ..., at every y.

        The last of them are the model's own. (Logit lens.)"""
        T = triples[0].size

        def read(z: Array, tape: dict) -> Array:
            h = self._streams(tape, T)[:, :, 1::3]
            rows = h.reshape(-1, h.shape[-1])
            p = BlockPass(self.dev, self.weights, (len(rows), 1), self.dev.fresh)
            logits, _ = self.model.readout(p, rows)
            return logits.reshape(*h.shape[:-1], -1)[..., : self.p]

        return self._run_host(triples, None, read)

    def _blocks(self) -> list[str]:
        """What the names of the blocks' arrays begin with."""
        return [f"blocks.{i}." for i in range(self.model.depth)]

    def _streams(self, tape: dict, T: int) -> Array:
        """(B, depth + 1, T, C): the residual stream before the first block and after every
        block."""
        streams = [tape["blocks.0.in"]]
        streams += [tape[block + "end"] for block in self._blocks()]
        return self._stack([h.reshape(-1, T, self.model.width) for h in streams])

    def _stack(self, parts: list[Array]) -> Array:
        """(B, ...) of every block -> (B, blocks, ...)"""
        return self.dev.xp.stack(parts, axis=1)

    # -- interventions: what predict takes as edit -------------------------------------------------

    def top_k(self, k: int) -> Edit:
        """Attention to the k keys of the highest scores only, chosen among those that the causal
        mask leaves:

        softmax over these k scores, which is the pattern's k largest entries divided by their
        sum."""

        def edit(name: str, x: Array, rows: np.ndarray) -> None:
            if name.endswith("pattern"):
                count = min(k, x.shape[-1])
                smallest = self.dev.xp.sort(x, axis=-1)[..., -count, None]
                x *= x >= smallest
                x /= x.sum(axis=-1, keepdims=True)

        return edit

    def set_head(self, block: int, head: int, values: float | np.ndarray) -> Edit:
        """The head's slice of the output matrix' input replaced: by a number, a vector (D,), or a
        donor's slice (B, T, D)."""

        def edit(name: str, x: Array, rows: np.ndarray) -> None:
            if name == f"blocks.{block}.attn.out":
                by_head = x.reshape(*x.shape[:-1], self.model.heads, -1)
                by_head[..., head, :] = self.dev.to_device(_given_host(values, rows))

        return edit


def _given_host(values: float | np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows of a donor's values (B, T, D); what all rows share as it is."""
    values = np.asarray(values)
    return values if values.ndim < 3 else values[rows]
