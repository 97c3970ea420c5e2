"""Run a network over every input, and account for what its logits are made of."""

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..engine.device import Array, Device, get_device
from ..engine.rng import generator
from ..models.mlp import TwoLayerNet
from ..models.protocol import Mode
from ..ops.embedding import RowIndex
from ..tasks.modular import Circle, ModularTask
from .trained import fit_waves, phase_is_told

EXHAUSTIVE = (
    10**12
)  # products in the read-out, inputs x neurons x classes: minutes on two cores; beyond it inputs are sampled
SAMPLE = 200_000
TERMS = 50_000_000  # kinds of words times neurons; above it the terms are not listed (from 7 terms on, roughly)
CHUNK_BYTES = {"cpu": 4_000_000, "cuda": 256_000_000}  # hidden activations and logits of a chunk


class ForwardRows(RowIndex):
    """A RowIndex for the forward pass alone: no grouping of the inputs by row, which only backward
    reads."""

    def __init__(self, dev: Device, index: np.ndarray, rows: int):
        self.rows, self.host, self.groups = rows, index, [[None] * len(index)]
        if dev.kind == "cuda":
            self.index = dev.to_device(index.astype(np.int32))


def two_layer(weights: dict[str, np.ndarray]) -> TwoLayerNet:
    """The network that parameters U (S, p, N), W (N, C) belong to, with activation x^S."""
    S, p, N = weights["U"].shape
    return TwoLayerNet(p, N, S, "square" if S == 2 else f"power{S}", weights["W"].shape[1])


def evaluator(dev: Device, network) -> Callable[[np.ndarray], Array]:
    """inputs (S, B) on the host -> logits (B, C) on the device, for weights {"U", "W"} or a
    PolynomialNetwork"""
    if not isinstance(network, dict):
        return network.evaluator(dev)
    net, w = two_layer(network), {name: dev.to_device(x) for name, x in network.items()}

    def logits(n: np.ndarray) -> Array:
        mode = Mode(buffer=dev.workspace.get)  # asked for here: every thread has its own workspace
        return net.forward(dev, w, ForwardRows(dev, n, net.p), mode)[0]

    return logits


# -- what the logits are made of -------------------------------------------------------------------


class Term(NamedTuple):
    """The waves e^(i (m . theta - omega q)) in the logits, theta_s = omega g_s(n_s).

    m        integers (m_1, ..., m_S); (1, ..., 1) carries the answer
    words    in how many ways S signed letters make m
    rms      root mean square over inputs and classes of what the term adds to the logits
    peak     what it adds to the right logit, at most (every wave in phase)
    """

    m: tuple[int, ...]
    words: int
    rms: float
    peak: float


def cross_terms(weights: dict[str, np.ndarray], circle: Circle) -> list[Term]:
    """Every family of terms in the logits of a network of waves, the largest first (signal
    included).

    W's cosine times (sum_s A_s cos(theta_s + psi_s))^S is 2^-S times the sum over words of S
    letters z_s e^(i theta_s) or their conjugates, z_s = A_s e^(i psi_s), times conj(z_W) e^(-i
    omega q). Frequencies that are their own mirror image (f = 0, the Nyquist frequency) have no
    phase and are left out. A trained network counts by the waves fitted to it. The squares of rms
    add up where the period exceeds 2 S (else families coincide). No terms where the answers hide
    the phases (h(t) = h(-t))."""
    fit = fit_waves(weights, circle)
    told = phase_is_told(circle, weights["W"].shape[1]) | (
        2 * np.arange(circle.period // 2 + 1) % circle.period == 0
    )
    if not told[fit.frequency].all():
        return []
    z = fit.amplitude * np.exp(1j * fit.phase)
    S = len(z) - 1
    letters = np.concatenate([z[:-1], z[:-1].conj()])
    coefficient, words = Counter(), Counter()
    for word in itertools.combinations_with_replacement(range(2 * S), S):
        count = math.factorial(S) // math.prod(map(math.factorial, Counter(word).values()))
        m = tuple(word.count(s) - word.count(s + S) for s in range(S))
        words[m] += count
        coefficient[m] = (
            coefficient[m] + count / 2**S * letters[list(word)].prod(axis=0) * z[-1].conj()
        )
    size, mirror = circle.period // 2 + 1, 2 * fit.frequency % circle.period == 0
    terms = []
    for m, c in coefficient.items():
        real, imaginary = (
            np.bincount(fit.frequency, np.where(mirror, 0, x), size) for x in (c.real, c.imag)
        )
        terms.append(
            Term(
                m,
                words[m],
                math.sqrt((real**2 + imaginary**2).sum() / 2),
                float(np.hypot(real, imaginary).sum()),
            )
        )
    return sorted(terms, key=lambda term: -term.rms)


# -- every input -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verification:
    """What a network does on the inputs of a task.

    inputs         inputs run: all of them, or (whole False) a uniform random sample of the p^S, with repetition
    min_margin     right logit minus the largest wrong one, the smallest of all inputs, and the input `at` that attains it
    terms          every family of terms in the logits (cross_terms); empty where no circle is known, or too many
    """

    accuracy: float
    inputs: int
    whole: bool
    mse: float
    min_margin: float
    at: tuple[int, ...]
    mean_margin: float
    terms: list[Term]

    @property
    def signal(self) -> float:
        """The peak of the term that carries the answer; nan without terms."""
        return next((t.peak for t in self.terms if set(t.m) == {1}), math.nan)

    @property
    def noise(self) -> float:
        """The root mean square of all other terms together. Random phases: signal/noise =
        sqrt(N/v_S), or nearly."""
        return math.sqrt(sum(t.rms**2 for t in self.terms if set(t.m) != {1}))

    def __str__(self) -> str:
        share = "all of them" if self.whole else "a random sample"
        return (
            f"accuracy {self.accuracy:.6%} on {self.inputs:,} inputs ({share}); MSE {self.mse:.4g}; "
            f"smallest margin {self.min_margin:.6g} at {self.at}, mean {self.mean_margin:.4g}"
        )


def verify(
    network,
    task: ModularTask,
    dev: Device | None = None,
    limit: int = EXHAUSTIVE,
    sample: int = SAMPLE,
    seed: int = 0,
    terms: bool = True,
    on_chunk: Callable[[int, int], None] = lambda done, total: None,
) -> Verification:
    """Run a network over every input of a task, in chunks over the worker threads. Where inputs x
    neurons x classes exceed `limit`, up to `sample` inputs drawn at random stand for the table, and
    the result says so.

    network   weights {"U", "W"} (the library's two-layer network with activation x^S), or a PolynomialNetwork
    dev       float64 on the CPU by default
    terms     list the families of terms too
    on_chunk  called with (inputs begun, inputs in all) while it runs
    """
    dev = dev or get_device("cpu", "float64")
    S, p = task.terms, task.p
    logits = evaluator(dev, network)
    width = len(network["W"]) if isinstance(network, dict) else network.width
    affordable = max(1, limit // (width * p))
    whole = task.size <= affordable
    count = task.size if whole else min(sample, affordable)
    drawn = None if whole else generator(seed, "probes").integers(p, size=(S, count))
    rows = max(64, CHUNK_BYTES[dev.kind] // (dev.dtype.itemsize * (width + p)))

    def chunk(start: int) -> tuple:
        stop = min(start + rows, count)
        on_chunk(start, count)
        n = task.inputs(np.arange(start, stop)) if whole else drawn[:, start:stop]
        n = n[:, task.defined(n)]
        return (
            _measure(dev, logits(n), task.labels(n), n)
            if n.size
            else (0, 0, 0.0, 0.0, math.inf, ())
        )

    parts = list(zip(*dev.map(chunk, range(0, count, rows)), strict=True))
    inputs, hits, squares, margins = (sum(x) for x in parts[:4])
    worst = int(np.argmin(parts[4]))  # a nan counts as the smallest: it must not hide
    weights, circle = (
        (network, task.circle)
        if isinstance(network, dict)
        else (network.top, network.top_task.circle)
    )
    letters = len(weights["U"])
    listed = (
        terms
        and circle is not None
        and math.comb(3 * letters - 1, letters) * len(weights["W"]) <= TERMS
    )
    return Verification(
        accuracy=hits / inputs,
        inputs=inputs,
        whole=whole,
        mse=squares / (inputs * p),
        min_margin=parts[4][worst],
        at=parts[5][worst],
        mean_margin=margins / inputs,
        terms=cross_terms(weights, circle) if listed else [],
    )


def _measure(dev: Device, z: Array, labels: np.ndarray, n: np.ndarray) -> tuple:
    """(inputs, hits, squared error, sum of margins, smallest margin, its input) of a chunk; the
    logits z are overwritten"""
    at = dev.xp.arange(len(labels)), dev.to_device(labels)
    right = z[at]
    z[at] = right - 1
    squares = float(dev.xp.vdot(z, z))
    z[at] = -math.inf
    margin = right - z.max(axis=-1)
    worst = int(margin.argmin())
    return (
        len(labels),
        int((margin > 0).sum()),
        squares,
        float(margin.sum()),
        float(margin[worst]),
        tuple(n[:, worst].tolist()),
    )
