"""Circuits whose algorithm is proven, their answers, and a decoder that finds the circuit again."""

from dataclasses import dataclass

import numpy as np

from tinygrok.analytic.addition import DESIGNS, Waves, choose_waves, designed_waves, render
from tinygrok.analytic.trained import fit_waves
from tinygrok.analytic.verify import evaluator
from tinygrok.engine.rng import generator

PARTS = 3  # U[0], U[1] and W of a neuron
CHUNK_BYTES = 16_000_000


@dataclass
class Truth:
    """What every one of N neurons is; of waves, by the convention of truth.json.

    role        (N,) wave, dead, flipped, memorises, or spare: not used yet
    frequency   (N,) 0 .. p/2; -1 of a neuron that is no wave
    amplitude, phase   (3, N) of U[0], U[1] and W; phases in (-pi, pi]
    """

    role: np.ndarray
    frequency: np.ndarray
    amplitude: np.ndarray
    phase: np.ndarray


# -- a clean circuit -------------------------------------------------------------------------------


def build(task, circuit, width, seed, pairs):
    """(weights, Truth) of n1 + n2 mod p without faults, its neurons in an order drawn by the seed.

    pairs   to be memorised later, by two neurons each, which are 0 in every weight until then"""
    rng = generator(seed, "init")
    waves = choose_waves(task, task.circle, width, circuit, rng)
    if circuit in DESIGNS:
        waves = _drawn(task.p, waves, circuit, rng)
    count = len(waves.frequency)
    N = count + 2 * pairs
    place = rng.permutation(N)[:count]
    frequency, amplitude, phase = described(task.p, waves)
    rendered = render(task.circle, task.p, waves)
    weights = {"U": np.zeros((2, task.p, N)), "W": np.zeros((N, task.p))}
    weights["U"][..., place] = rendered["U"]
    weights["W"][place] = rendered["W"]
    truth = Truth(
        role=np.full(N, "spare", dtype="<U9"),
        frequency=np.full(N, -1),
        amplitude=np.zeros((PARTS, N)),
        phase=np.full((PARTS, N), np.nan),
    )
    truth.role[place] = "wave"
    truth.frequency[place] = frequency
    truth.amplitude[:, place] = amplitude
    truth.phase[:, place] = phase
    return weights, truth


def _drawn(p, waves, circuit, rng):
    """The same number of waves on frequencies drawn at random, the phases of each turned at random.

    The proof in tinygrok/analytic/addition.py holds for every omega and all theta_s, so for theta_s
    + alpha_s too: alpha_1 and alpha_2 are added to psi_1 and psi_2 of all neurons of a frequency.
    Equal phases stay equal."""
    design = DESIGNS[circuit](2)
    J = len(design)
    count = len(waves.frequency) // J
    chosen = 1 + np.sort(rng.permutation(p // 2)[:count])
    turn = rng.uniform(-np.pi, np.pi, (count, 2))
    if circuit == "equal":
        turn[:, 1] = turn[:, 0]
    drawn = designed_waves(p, chosen, design)
    drawn = drawn._replace(phase=drawn.phase + np.repeat(turn, J, axis=0))
    constant = Waves(*(x[J * count :] for x in waves))
    return Waves(*(np.concatenate(parts) for parts in zip(drawn, constant, strict=True)))


def is_mirror(frequency, p):
    """Whether a frequency is its own mirror image: 0, and p/2 of an even p."""
    return 2 * frequency % p == 0


def described(p, waves):
    """frequency (N,) in 0 .. p/2, amplitude (3, N) >= 0 and phase (3, N) of waves.

    A frequency above p/2 is the wave of p - f with the opposite phases; a wave that is its own
    mirror image, A cos(psi) cos(omega n), is known by A cos(psi) alone: its phase is 0 or pi."""
    above = waves.frequency > p // 2
    frequency = np.where(above, p - waves.frequency, waves.frequency)
    phase = np.concatenate([waves.phase.T, waves.phase.sum(axis=1)[None]])
    phase = np.where(above, -phase, phase)
    mirror = is_mirror(frequency, p)
    height = np.where(mirror, np.cos(phase), 1)
    amplitude = waves.amplitude * np.abs(height)
    phase = np.where(mirror, np.where(height < 0, np.pi, 0), phase)
    return frequency, amplitude, wrapped(phase)


def wrapped(phase):
    """In (-pi, pi]."""
    return np.pi - (np.pi - phase) % (2 * np.pi)


def formula(circuit, truth, n, p):
    """(B, p) the logits of a clean circuit to inputs n (2, B), as proven; None for random phases.

    exact, lattice   sum over f of w_f cos(omega d),  d = n1 + n2 - q
    equal            the same, each term times 1 + cos(omega (n1 - n2)), except f = 0"""
    if circuit not in DESIGNS:
        return None
    d = (n[0] + n[1])[:, None] - np.arange(p)
    frequency = np.unique(truth.frequency[truth.role == "wave"])
    weight = np.where(is_mirror(frequency, p), 1, 2) / p
    turns = frequency[:, None] * np.arange(p) % p
    terms = weight[:, None] * np.cos(2 * np.pi / p * turns)  # (F, p)
    profile = terms.sum(axis=0)
    if circuit != "equal":
        return profile[d % p]
    waves = terms[frequency > 0].sum(axis=0)
    e = (n[0] - n[1])[:, None]
    return profile[d % p] + (waves[(d + e) % p] + waves[(d - e) % p]) / 2


# -- every input -----------------------------------------------------------------------------------


@dataclass
class Answers:
    """Of all p^2 inputs: answers and margins (p, p), and the logits' largest distance to `formula`.

    margin: right logit minus the largest wrong one"""

    predicted: np.ndarray
    margin: np.ndarray
    distance: float

    def row(self):
        """The numbers of a row of log.csv."""
        right = int((self.margin > 0).sum())
        return {
            "accuracy": right / self.margin.size,
            "wrong": self.margin.size - right,
            "min_margin": float(self.margin.min()),
            "mean_margin": float(self.margin.mean()),
        }


def answers(dev, weights, task, expected=None) -> Answers:
    """A network's answers to every input; expected: the function inputs (2, B) -> logits (B, p)."""
    p = task.p
    logits = evaluator(dev, weights)
    rows = max(64, CHUNK_BYTES // (8 * (len(weights["W"]) + p)))
    predicted = np.empty(task.size, dtype=int)
    margin = np.empty(task.size)

    def chunk(start):
        part = slice(start, min(start + rows, task.size))
        n = task.inputs(np.arange(part.start, part.stop))
        z = np.array(dev.to_host(logits(n)))  # ours: the right logits are overwritten below
        wanted = expected(n) if expected else None
        distance = 0.0 if wanted is None else float(np.abs(z - wanted).max())
        predicted[part] = z.argmax(axis=1)
        at = np.arange(len(z)), task.labels(n)
        right = z[at]
        z[at] = -np.inf
        margin[part] = right - z.max(axis=1)
        return distance

    distances = dev.map(chunk, range(0, task.size, rows))
    return Answers(predicted.reshape(p, p), margin.reshape(p, p), max(distances))


def read_out(truth):
    """The frequencies that reach the logits."""
    return np.unique(truth.frequency[np.isin(truth.role, ("wave", "flipped"))])


# -- the truth, found again in the weights alone ---------------------------------------------------


def decoded(weights, circle) -> Truth:
    """The Truth of a network by least squares (analytic.trained.fit_waves): no list of ours is
    read."""
    fit = fit_waves(weights, circle)
    role = np.full(len(fit.frequency), "wave", dtype="<U9")
    role[np.abs(fit.residual) > np.pi / 2] = "flipped"
    tiny = 1e-6 * fit.amplitude.max()
    unread = fit.amplitude[2] < tiny
    role[unread] = "dead"
    waves = fit.share > 0.999
    role[~waves] = "memorises"
    phase = np.where(fit.amplitude < tiny, np.nan, fit.phase)
    return Truth(
        role,
        np.where(waves, fit.frequency, -1),
        np.where(waves, fit.amplitude, 0),
        np.where(waves, phase, np.nan),
    )


def recovered(truth: Truth, found: Truth, tolerance):
    """(N,) whether a decoder found a neuron's role, frequency, amplitudes and phases."""
    same = (truth.role == found.role) & (truth.frequency == found.frequency)
    size = np.abs(truth.amplitude - found.amplitude) <= tolerance * truth.amplitude.max()
    turn = wrapped(truth.phase - found.phase)
    phase = (np.abs(turn) <= tolerance) | (np.isnan(truth.phase) & np.isnan(found.phase))
    return same & size.all(axis=0) & phase.all(axis=0)
