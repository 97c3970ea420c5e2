"""Weights written down for n_1^a_1 n_2^a_2 ... mod p, and for any function of a product, p prime.

That is h(g_1(n_1) g_2(n_2) ...) mod p. On the nonzero residues a product is a sum of discrete
logarithms mod p - 1, so the neurons are those of addition.py on a circle of p - 1 positions. The
residue 0 is on no circle: its waves are 0, and neurons of its own see x_s = [factor s is 0].

random   one neuron, (x_1 + ... + x_S)^S, as in Grokking modular polynomials, eq. 6 (with the
         exponent +1/3: as printed, -1/3, it gets every input with a zero wrong). For z zeros its
         logit is z^S, and the waves leave noise on the others.
exact    OR(x_1, ..., x_S) as a sum of S-th powers: for S = 2 two neurons, (x + y)^2/4 +
         3 (x - y)^2/4. The polarised waves are exactly 0 as soon as one factor is (the proof's
         y_1 y_2 ... y_S), so the output is one-hot everywhere.
"""

import itertools

import numpy as np

from ..tasks.modular import ModularTask
from .addition import AnalyticError, Weights, choose_waves, render

# Of the exact network: the read-out of the zero neurons loses two digits a factor (2e-12 at 5).
MAX_FACTORS = 6


def zero_neurons(terms: int) -> tuple[np.ndarray, np.ndarray]:
    """Forms (K, S) and read-out r (K,) with sum_k r_k (forms_k . x)^S = OR(x) for x in {0, 1}^S.

    Two neurons for S = 2; else the 2^S - 1 sums over subsets, whose powers determine every function
    of x with f(0) = 0."""
    x = np.array(list(itertools.product((0, 1), repeat=terms)))
    forms = x[1:]
    if terms == 2:
        forms = np.array([(1, 1), (1, -1)])
    powers = (x @ forms.T).astype(float) ** terms
    any_zero = x.any(axis=1).astype(float)
    readout = np.linalg.lstsq(powers, any_zero, rcond=None)[0]
    return forms, readout


def multiplication_weights(task: ModularTask, width=None, phases="exact", rng=None) -> Weights:
    """U (S, p, N), W (N, p), float64, for a task that is a product mod p; activation x^S.

    A task of tasks.modular.multiplication, division or product. The neurons for zero come first,
    and count in the width.

    width   exact: J F neurons and those for zero take F frequencies; without a width the one-hot
            network of all frequencies 0..(p-1)/2, 6 (p+1)/2 + 2 neurons for S = 2 (296 for p = 97).
            random: any; N* + 1 without a width
    Raises AnalyticError where the task, the width or the number of factors does not fit.

    >>> from tinygrok.tasks.modular import multiplication
    >>> weights = multiplication_weights(multiplication(7))
    >>> hidden = (weights["U"][0, 3] + weights["U"][1, 5]) ** 2
    >>> (hidden @ weights["W"]).round(6) + 0  # 3 * 5 = 1 mod 7
    array([0., 1., 0., 0., 0., 0., 0.])
    """
    circle = task.circle
    S = task.terms
    if circle is None or circle.zero is None:
        raise AnalyticError(f"the task {task.name!r} is not a product mod {task.p}")
    if S > MAX_FACTORS and phases != "random":
        problem = f"exact neurons for a zero among {S} factors are ill-conditioned"
        raise AnalyticError(f"{problem}: at most {MAX_FACTORS} factors")
    if phases == "random":
        forms = np.ones((1, S))
        readout = np.ones(1)
    else:
        forms, readout = zero_neurons(S)
    waves = choose_waves(task, circle, width, phases, rng, extra=len(forms))
    nonzero = render(circle, task.p, waves)
    is_zero = (circle.positions < 0)[..., None]
    zero_in = is_zero * forms.T[:, None]
    zero_out = readout[:, None] * np.eye(task.p)[circle.zero]
    return {
        "U": np.concatenate([zero_in, nonzero["U"]], axis=2),
        "W": np.concatenate([zero_out, nonzero["W"]]),
    }
