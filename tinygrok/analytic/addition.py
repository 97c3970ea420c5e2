"""Weights written down for c_1 n_1 + ... + c_S n_S mod p, and for any sum on a circle.

That is h(g_1(n_1) + ... + g_S(n_S)) mod p. One hidden neuron is a wave of one frequency f around
the circle on which the task is a sum (omega = 2 pi f / period):

    U[s, n, k] = A cos(omega g_s(n) + psi_s)
    W[k, q] = A sum over t with h(t) = q of cos(omega t + psi_1 + ... + psi_S)

so with theta_s = omega g_s(n_s) it adds A^(S+1) cos(omega t + sum psi) (sum_s cos(theta_s +
psi_s))^S to the logit at t. Of the product's many cosines one carries the answer: (S!/2^S)
cos(theta_1 + ... + theta_S - omega t), whose phases cancel whatever they are. The phases of a group
of neurons are chosen so that all others cancel:

random    psi independent and uniform: the others average out like 1/sqrt(N)
          (Grokking modular polynomials, eq. 2)
exact     J = (S+1) 2^(S-1) neurons a frequency, psi_s = pi t/(S+1) + pi eps_s, t = 0..S,
          eps in {0, 1}^S, eps_1 = 0

Proof that `exact` is exact. Let y_s = cos(theta_s + tau), tau = pi t/(S+1).
  1. Sum over eps. A phase pi flips the sign of y_s, and that of W's cosine as often. What is left
     is the polarisation identity
     sum_eps (prod_s sign_s) (sum_s sign_s y_s)^S = 2^(S-1) S! y_1 y_2 ... y_S: a monomial survives
     only if every y_s, s > 1, has an odd power; powers that add up to S are then all 1.
  2. Sum over t. cos(omega t' + S tau) prod_s cos(theta_s + tau) is a sum of waves e^(2 i j tau),
     |j| <= S, and sum_t e^(2 pi i j t/(S+1)) = 0 unless j = 0. With j = 0 there is one cosine,
     2^-S cos(sum theta - omega t').
  Together A^(S+1) (S+1)!/2 cos(sum theta - omega t') = w_f cos(omega d), nothing else, at every
  width and for every omega, with d = sum_s g_s(n_s) - t' the distance from the answer.
With w_f = 2/p for f = 1..(p-1)/2 and one constant neuron, 1/p, the sum over f is (1/p) sum cos(2 pi
f d/p) over f = 0..p-1, [d = 0 mod p]: the logits are the one-hot answer. One frequency alone has
its maximum at d = 0: J neurons suffice whatever p is."""

import itertools
import math
from fractions import Fraction
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ..engine.errors import InputError, require_known
from ..engine.rng import generator
from ..tasks.modular import Circle, ModularTask

Weights = dict[str, np.ndarray]
MAX_TERMS = 20
MAX_WEIGHTS = 200_000_000  # 1.6 GB in float64
# S: (L, a), the smallest that cancel everything
LATTICES = {2: (6, (1, 4)), 3: (18, (1, 3, 12))}
LATTICES[4] = (54, (1, 3, 9, 36))


class AnalyticError(InputError):
    """Weights that cannot be written down as asked; the message says why in one line."""


# -- widths and noise, known beforehand ------------------------------------------------------------


def noise_constant(terms: int) -> float:
    """v_S = (2^S/S!)^2 M/2 - 1/2: with random phases a wrong logit has variance v_S/N.

    And so the MSE is v_S/N. M = mean of (sum_s cos alpha_s)^(2S) over angles = (closed walks of 2S
    steps on the lattice Z^S) / 4^S, and walks = (2S)! [y^S] (sum_k y^k / k!^2)^S.
    v_S = 1/2, 4, 25.33, 164.5, 1118.7 for S = 1..5.
    """
    series = [Fraction(1, math.factorial(k) ** 2) for k in range(terms + 1)]
    power = [Fraction(1)]  # of the series, up to y^S
    for _ in range(terms):
        power = np.convolve(power, series)[: terms + 1]
    walks = power[terms] * math.factorial(2 * terms)
    carried = Fraction(2**terms, math.factorial(terms)) ** 2
    return float(carried * walks / 4**terms / 2 - Fraction(1, 2))


def random_width(p: int, terms: int, inputs: int | None = None) -> int:
    """N* = 2 v_S z^2, z the upper 1/(B (p-1)) quantile of the normal distribution.

    The width of random phases at which, of B inputs times p - 1 wrong classes, one margin is
    expected to fail, if the noise of the logits is taken as normal: from about there on there is no
    error. B is p^S, all inputs, unless given. S = 2, p = 97: 179."""
    tail = 1 / ((inputs or p**terms) * (p - 1))
    z = NormalDist().inv_cdf(tail)
    return max(1, round(2 * noise_constant(terms) * z**2))


def group_size(terms: int) -> int:
    """J = (S+1) 2^(S-1) neurons a frequency with exact phases: 2, 6, 16, 40, 96 for S = 1..5."""
    return (terms + 1) * 2 ** (terms - 1)


# -- phases of one frequency -----------------------------------------------------------------------


def exact_phases(terms: int) -> np.ndarray:
    """psi (J, S) = pi t/(S+1) + pi eps_s: every unwanted term cancels (the proof is above)."""
    signs = itertools.product((0, 1), repeat=terms - 1)
    flips = np.array([(0, *eps) for eps in signs])
    shifts = np.arange(terms + 1)[:, None, None] / (terms + 1)
    return np.pi * (shifts + flips).reshape(-1, terms)


def lattice_phases(terms: int) -> np.ndarray:
    """psi (L, S) = 2 pi t a / L, t = 0..L-1: exact as well, by one line of phases.

    Known for S = 2, 3, 4."""
    if terms not in LATTICES:
        raise AnalyticError(f"lattice phases are known for 2, 3 and 4 terms, not {terms}")
    size, step = LATTICES[terms]
    turns = np.arange(size)[:, None] * np.array(step) % size
    return 2 * np.pi / size * turns


def equal_phases(terms: int) -> np.ndarray:
    """psi (3, 2), psi_1 = psi_2 in {0, pi/3, 2 pi/3}, for two terms only.

    cos(omega d) (1 + cos(theta_1 - theta_2)): right for odd p with half the neurons, but with a
    margin that depends on the input (the "pizza" shape)."""
    if terms != 2:
        raise AnalyticError(f"equal phases work for 2 terms only, not {terms}")
    return np.pi / 3 * np.arange(3)[:, None] * np.ones(2)


DESIGNS = {"exact": exact_phases, "lattice": lattice_phases, "equal": equal_phases}


# -- neurons ---------------------------------------------------------------------------------------


class Waves(NamedTuple):
    """frequency (N,), phase (N, S) and amplitude (N,) of neurons on a circle"""

    frequency: np.ndarray
    phase: np.ndarray
    amplitude: np.ndarray


def random_waves(period: int, terms: int, width: int, rng: np.random.Generator) -> Waves:
    """Frequencies sigma(k) mod period, phases uniform, A = (2^S/(N S!))^(1/(S+1)).

    Eq. 2 of the paper, and eq. 6 with the sign of its exponent corrected."""
    amplitude = (2**terms / (width * math.factorial(terms))) ** (1 / (terms + 1))
    phase = rng.uniform(-np.pi, np.pi, (width, terms))
    frequency = rng.permutation(width) % period
    return Waves(frequency, phase, np.full(width, amplitude))


def designed_waves(period: int, frequencies: np.ndarray, phases: np.ndarray) -> Waves:
    """The same phases (J, S) for every frequency, A_f^(S+1) = w_f 2^S/(J S!), w_f = 2/period.

    w_f = 1/period where a wave is its own mirror image (f = 0, and the Nyquist frequency of an even
    period)."""
    J, S = phases.shape
    mirror = 2 * frequencies % period == 0
    weight = np.where(mirror, 1, 2) / period
    amplitude = (weight * 2**S / (J * math.factorial(S))) ** (1 / (S + 1))
    phase = np.tile(phases, (len(frequencies), 1))
    return Waves(np.repeat(frequencies, J), phase, np.repeat(amplitude, J))


def constant_wave(period: int, terms: int) -> Waves:
    """One neuron for f = 0 where every input is on the circle: A (S A)^S = 1/period."""
    amplitude = (period * terms**terms) ** (-1 / (terms + 1))
    return Waves(np.array([0]), np.zeros((1, terms)), np.array([amplitude]))


def choose_waves(task: ModularTask, circle: Circle, width, phases: str, rng, extra=0) -> Waves:
    """The waves of a network of a total width, of which `extra` neurons are no waves.

    Without a width: N* neurons for random phases, else every frequency; J, 2 J, 3 J, ... neurons
    take the frequencies 1, then 1 and 2, ... alone."""
    S = task.terms
    if S > MAX_TERMS:
        needed = f"{S} terms need the activation x^{S}, whose logits leave the range of floats"
        raise AnalyticError(f"{needed}: at most {MAX_TERMS}")
    if phases == "random":
        count = random_width(task.p, S) if width is None else width - extra
        _check_size(task, count + extra)
        if count < 1:
            needed = f"{task.name} needs at least {extra + 1} neurons"
            raise AnalyticError(f"width {width} is too small: {needed}")
        return random_waves(circle.period, S, count, rng or generator(0, "init"))
    require_known(phases, ("random", *DESIGNS), "phases", AnalyticError)
    if phases == "equal" and circle.period % 2 == 0:
        raise AnalyticError(f"equal phases need a circle of odd length, not {circle.period}")
    _check_size(task, max(group_size(S), width or 0))  # before anything of that size is made
    design = DESIGNS[phases](S)

    J = len(design)
    top = circle.period // 2  # the highest frequency
    if circle.zero is None:
        constant = constant_wave(circle.period, S)
    else:
        constant = designed_waves(circle.period, np.array([0]), design)
    everything = J * top + len(constant.frequency)
    asked = everything if width is None else width - extra
    count, rest = divmod(asked, J)
    _check_size(task, J * count)
    if asked == everything:
        waves = designed_waves(circle.period, np.arange(1, top + 1), design)
        return Waves(*(np.concatenate(parts) for parts in zip(waves, constant, strict=True)))
    if rest or not 1 <= count <= top:
        problem = "is too small" if asked < J else "does not fit"
        take = f"{phases} phases take {J} neurons a frequency"
        if extra:
            take += f" and {extra} for zero"
        sizes = f"{J + extra}, {2 * J + extra}, ..., or {everything + extra} for all frequencies"
        raise AnalyticError(f"width {width} {problem}: {take}, so {sizes}")
    return designed_waves(circle.period, np.arange(1, count + 1), design)


def _check_size(task: ModularTask, width: int) -> None:
    weights = width * task.p * (task.terms + 1)
    if weights > MAX_WEIGHTS:
        needed = f"{task.terms} terms mod {task.p} need {width:,} neurons or more"
        raise AnalyticError(f"{needed}: {weights:,} weights are too many")


def render(circle: Circle, p: int, waves: Waves) -> dict[str, np.ndarray]:
    """U (S, p, N) and W (N, p) of the neurons, by the formulas above; U is 0 off the circle."""
    omega = 2 * np.pi / circle.period
    f = waves.frequency
    # Positions times frequency are reduced as integers: no digits are lost.
    turns_in = circle.positions[..., None] * f % circle.period  # (S, p, N)
    turns_out = f[:, None] * np.arange(circle.period) % circle.period  # (N, period)
    on_circle = (circle.positions >= 0)[..., None]
    phase_in = waves.phase.T[:, None]
    phase_out = waves.phase.sum(axis=1)[:, None]
    U = waves.amplitude * np.cos(omega * turns_in + phase_in) * on_circle
    around = np.cos(omega * turns_out + phase_out)
    W = waves.amplitude[:, None] * around @ np.eye(p)[circle.answers]
    return {"U": U, "W": W}


def addition_weights(task: ModularTask, width=None, phases="exact", rng=None) -> Weights:
    """U (S, p, N), W (N, p), float64, for a task that is a sum mod p; activation x^S.

    A task of tasks.modular.addition, subtraction or separable.

    width   exact: J F neurons take F frequencies (margin: min over d of (2/p) sum_f (1 - cos(2 pi f
            d/p))); without a width the one-hot network of J (p-1)/2 + 1 neurons (p odd). random:
            any; N* without a width
    phases  random, exact, lattice or equal; rng draws the random ones
    Raises AnalyticError where the task, the width or the number of terms does not fit.

    >>> from tinygrok.tasks.modular import addition
    >>> weights = addition_weights(addition(97))
    >>> weights["U"].shape, weights["W"].shape
    ((2, 97, 289), (289, 97))
    >>> hidden = (weights["U"][0, 60] + weights["U"][1, 50]) ** 2
    >>> int((hidden @ weights["W"]).argmax())  # 60 + 50 mod 97
    13
    """
    if task.circle is None or task.circle.zero is not None:
        raise AnalyticError(f"the task {task.name!r} is not a sum mod {task.p}")
    waves = choose_waves(task, task.circle, width, phases, rng)
    return render(task.circle, task.p, waves)
