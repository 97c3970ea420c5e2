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

# Products in the read-out, inputs x neurons x classes: minutes on two cores; beyond it inputs are
# sampled.
EXHAUSTIVE = 10**12
SAMPLE = 200_000
# Kinds of words times neurons; above it the terms are not listed (from 7 terms on, roughly).
TERMS = 50_000_000
CHUNK_BYTES = {"cpu": 4_000_000, "cuda": 256_000_000}  # hidden activations and logits of a chunk


def two_layer(weights: dict[str, np.ndarray]) -> TwoLayerNet:
    """The network that parameters U (S, p, N), W (N, C) belong to, with activation x^S."""
    S, p, N = weights["U"].shape
    return TwoLayerNet(p, N, S, classes=weights["W"].shape[1])


def evaluator(dev: Device, network) -> Callable[[np.ndarray], Array]:
    """The function inputs (S, B) on the host -> logits (B, C) on the device of a network.

    network   weights {"U", "W"}, or a PolynomialNetwork"""
    if not isinstance(network, dict):
        return network.evaluator(dev)
    net = two_layer(network)
    w = {name: dev.to_device(x) for name, x in network.items()}

    def logits(n: np.ndarray) -> Array:
        mode = Mode(buffer=dev.workspace.get)  # asked for here: every thread has its own workspace
        return net.forward(dev, w, RowIndex(dev, n, net.p, backward=False), mode)[0]

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

    @property
    def is_signal(self) -> bool:
        """Whether the term carries the answer."""
        return set(self.m) == {1}


def cross_terms(weights: dict[str, np.ndarray], circle: Circle) -> list[Term]:
    """Every family of terms in the logits of a network of waves, the largest first.

    Signal included. W's cosine times (sum_s A_s cos(theta_s + psi_s))^S is 2^-S times the sum over
    words of S letters z_s e^(i theta_s) or their conjugates, z_s = A_s e^(i psi_s), times conj(z_W)
    e^(-i omega q). Frequencies that are their own mirror image (f = 0, the Nyquist frequency) have
    no phase and are left out. A trained network counts by the waves fitted to it. The squares of
    rms add up where the period exceeds 2 S (else families coincide). No terms where the answers
    hide the phases (h(t) = h(-t))."""
    fit = fit_waves(weights, circle)
    frequencies = np.arange(circle.period // 2 + 1)
    mirror = 2 * frequencies % circle.period == 0
    told = phase_is_told(circle, weights["W"].shape[1])
    if not (told | mirror)[fit.frequency].all():
        return []
    z = fit.amplitude * np.exp(1j * fit.phase)
    S = len(z) - 1
    letters = np.concatenate([z[:-1], z[:-1].conj()])
    words: Counter[tuple[int, ...]] = Counter()
    coefficient: dict[tuple[int, ...], Array] = {}
    for word in itertools.combinations_with_replacement(range(2 * S), S):
        repeats = Counter(word).values()
        count = math.factorial(S) // math.prod(map(math.factorial, repeats))
        m = tuple(word.count(s) - word.count(s + S) for s in range(S))
        words[m] += count
        product = letters[list(word)].prod(axis=0)
        share = count / 2**S * product * z[-1].conj()
        coefficient[m] = coefficient.get(m, 0) + share

    def by_frequency(x: np.ndarray) -> np.ndarray:
        """(F,) the sum over the neurons of a frequency of x (N,)."""
        has_phase = np.where(mirror[fit.frequency], 0, x)
        return np.bincount(fit.frequency, has_phase, len(frequencies))

    terms = []
    for m, c in coefficient.items():
        real = by_frequency(c.real)
        imaginary = by_frequency(c.imag)
        rms = math.sqrt((real**2 + imaginary**2).sum() / 2)
        peak = float(np.hypot(real, imaginary).sum())
        terms.append(Term(m, words[m], rms, peak))
    return sorted(terms, key=lambda term: -term.rms)


# -- every input -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verification:
    """What a network does on the inputs of a task.

    inputs         inputs run: all of them, or (whole False) a uniform random sample of the p^S,
                   with repetition
    min_margin     right logit minus the largest wrong one, the smallest of all inputs
    at             the input that attains it
    terms          every family of terms in the logits (cross_terms); empty where no circle is
                   known, or too many
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
        peaks = [term.peak for term in self.terms if term.is_signal]
        return peaks[0] if peaks else math.nan

    @property
    def noise(self) -> float:
        """The root mean square of all other terms together.

        Random phases: signal/noise = sqrt(N/v_S), or nearly."""
        return math.sqrt(sum(term.rms**2 for term in self.terms if not term.is_signal))

    def __str__(self) -> str:
        share = "all of them" if self.whole else "a random sample"
        return (
            f"accuracy {self.accuracy:.6%} on {self.inputs:,} inputs ({share}); "
            f"MSE {self.mse:.4g}; "
            f"smallest margin {self.min_margin:.6g} at {self.at}, mean {self.mean_margin:.4g}"
        )


class _Chunk(NamedTuple):
    """What a network does on some inputs; margin: right logit minus the largest wrong one."""

    inputs: int
    hits: int
    squared_error: float
    margins: float  # their sum
    min_margin: float
    at: tuple[int, ...]


def verify(
    network, task, dev=None, limit=EXHAUSTIVE, sample=SAMPLE, seed=0, terms=True, over=None
) -> Verification:
    """Run a network over every input of a task, in chunks over the worker threads.

    Where inputs x neurons x classes exceed `limit`, up to `sample` inputs drawn at random stand for
    the table, and the result says so.

    network   weights {"U", "W"} (the library's two-layer network with activation x^S), or a
              PolynomialNetwork
    task      a ModularTask
    dev       float64 on the CPU by default
    terms     list the families of terms too
    over      in place of dev.map: (function, range of the chunks' first inputs) -> its results, to
              report what is done, or to keep it

    >>> from tinygrok.analytic.addition import addition_weights
    >>> from tinygrok.tasks.modular import addition
    >>> result = verify(addition_weights(addition(23)), addition(23))
    >>> result.accuracy, result.inputs, round(result.min_margin, 6)
    (1.0, 529, 1.0)
    """
    dev = dev or get_device("cpu", "float64")
    S = task.terms
    p = task.p
    logits = evaluator(dev, network)
    width = len(network["W"]) if isinstance(network, dict) else network.width
    affordable = max(1, limit // (width * p))
    count = task.size
    drawn = None
    if task.size > affordable:
        count = min(sample, affordable)
        drawn = generator(seed, "probes").integers(p, size=(S, count))
    rows = max(64, CHUNK_BYTES[dev.kind] // (dev.dtype.itemsize * (width + p)))

    def chunk(start: int) -> _Chunk:
        stop = min(start + rows, count)
        n = task.inputs(np.arange(start, stop)) if drawn is None else drawn[:, start:stop]
        n = n[:, task.defined(n)]
        if n.size == 0:
            return _Chunk(0, 0, 0.0, 0.0, math.inf, ())
        return _measure(dev, logits(n), task.labels(n), n)

    done = (over or dev.map)(chunk, range(0, count, rows))
    chunks = [_Chunk(*x) for x in done]
    inputs = sum(x.inputs for x in chunks)
    smallest = [x.min_margin for x in chunks]
    worst = chunks[int(np.argmin(smallest))]  # a nan counts as the smallest: it must not hide
    return Verification(
        accuracy=sum(x.hits for x in chunks) / inputs,
        inputs=inputs,
        whole=drawn is None,
        mse=sum(x.squared_error for x in chunks) / (inputs * p),
        min_margin=worst.min_margin,
        at=tuple(worst.at),
        mean_margin=sum(x.margins for x in chunks) / inputs,
        terms=_listed_terms(network, task) if terms else [],
    )


def _listed_terms(network, task: ModularTask) -> list[Term]:
    """The cross terms of the (last) two-layer network; none where there would be too many."""
    weights = network if isinstance(network, dict) else network.top
    circle = task.circle if isinstance(network, dict) else network.top_task.circle
    S = len(weights["U"])
    words = math.comb(3 * S - 1, S)
    if circle is None or words * len(weights["W"]) > TERMS:
        return []
    return cross_terms(weights, circle)


def _measure(dev: Device, z: Array, labels: np.ndarray, n: np.ndarray) -> _Chunk:
    """The chunk of inputs n (S, B) with logits z (B, C), which are overwritten."""
    at = dev.xp.arange(len(labels)), dev.to_device(labels)
    right = z[at]
    z[at] = right - 1
    squared_error = float(dev.xp.vdot(z, z))
    z[at] = -math.inf
    margin = right - z.max(axis=-1)
    worst = int(margin.argmin())
    return _Chunk(
        inputs=len(labels),
        hits=int((margin > 0).sum()),
        squared_error=squared_error,
        margins=float(margin.sum()),
        min_margin=float(margin[worst]),
        at=tuple(n[:, worst].tolist()),
    )
