"""What training found, against what can be written down, and what could be learned at all.

Any network of parameters {"U": (S, p, N), "W": (N, C)} can be fitted in the coordinates of its task
(ModularTask.circle): every neuron to a wave."""

from typing import NamedTuple

import numpy as np

from ..tasks.modular import Circle

# -- distance to the analytic family ---------------------------------------------------------------


class WaveFit(NamedTuple):
    """The nearest neurons A cos(omega_k g_s(n) + psi_s), one frequency a neuron.

    frequency (N,)
    amplitude, phase (S + 1, N)   free ones, of the S inputs, then of the read-out
    common (N,)     whether every part by itself has this frequency as its strongest
    share (N,)      share of the neuron's squared weights that the fit explains
    total           share of the network's
    residual (N,)   psi_W - sum_s psi_s in (-pi, pi], 0 in every analytic network; nan where it
                    cannot be told: a part of the neuron is 0, the frequency is its own mirror image
                    (f = 0, Nyquist), or the answers are (h(t) = h(-t): the read-out of such a task
                    keeps no phase)
    """

    frequency: np.ndarray
    amplitude: np.ndarray
    phase: np.ndarray
    common: np.ndarray
    share: np.ndarray
    total: float
    residual: np.ndarray


def _bases(circle: Circle, p: int) -> np.ndarray:
    """(S + 1, F, p, 2): cos and -sin of omega_f g_s(n), and of omega_f t summed over h(t) = q.

    All frequencies f = 0 .. P/2; 0 off the circle."""
    f = np.arange(circle.period // 2 + 1)
    turns = f[:, None] * np.arange(circle.period) % circle.period
    around = np.exp(2j * np.pi / circle.period * turns)  # (F, P)
    on_circle = (circle.positions >= 0)[:, None]
    inputs = around[:, circle.positions].swapaxes(0, 1) * on_circle
    outputs = around @ np.eye(p)[circle.answers]
    waves = np.concatenate([inputs, outputs[None]])
    return np.stack([waves.real, -waves.imag], axis=-1)


def _parts(weights: dict[str, np.ndarray]) -> np.ndarray:
    """(S + 1, p, N): the input tables and the transposed read-out, in float64."""
    return np.concatenate([weights["U"], weights["W"].T[None]]).astype(float)


def fit_waves(weights: dict[str, np.ndarray], circle: Circle) -> WaveFit:
    """Least squares A cos(x + psi) = (A cos psi) cos x - (A sin psi) sin x, for each neuron.

    For each part and frequency; a neuron takes the frequency that explains most of its squared
    weights, all parts together."""
    parts = _parts(weights)
    bases = _bases(circle, parts.shape[1])
    gram = bases.swapaxes(-1, -2) @ bases
    pairs = np.linalg.pinv(bases) @ parts[:, None]  # (S + 1, F, 2, N)
    power = (pairs * (gram @ pairs)).sum(axis=2)  # (S + 1, F, N), squared weights explained
    frequency = power.sum(axis=0).argmax(axis=0)
    neurons = np.arange(len(frequency))
    chosen = pairs[:, frequency, :, neurons].transpose(1, 2, 0)  # (S + 1, 2, N)
    waves = chosen[:, 0] + 1j * chosen[:, 1]
    amplitude = np.abs(waves)
    phase = np.angle(waves)

    explained = power[:, frequency, neurons].sum(axis=0)
    norm = (parts**2).sum(axis=(0, 1))
    common = (power.argmax(axis=1) == frequency).all(axis=0)
    told = phase_is_told(circle, parts.shape[1])[frequency]
    present = (amplitude > 1e-9 * amplitude.max()).all(axis=0)
    rest = np.angle(waves[-1] * waves[:-1].prod(axis=0).conj())
    return WaveFit(
        frequency,
        amplitude,
        phase,
        common,
        share=explained / np.where(norm > 0, norm, 1),
        total=float(explained.sum() / norm.sum()),
        residual=np.where(present & told, rest, np.nan),
    )


def phase_is_told(circle: Circle, p: int) -> np.ndarray:
    """(F,) whether the read-out of a neuron of frequency f = 0 .. P/2 shows its phase.

    Whether cos and sin of omega_f t, summed over the positions of every answer, are two different
    functions of the answer."""
    basis = _bases(circle, p)[-1]
    gram = basis.swapaxes(-1, -2) @ basis  # (F, 2, 2)
    size = np.trace(gram, axis1=-2, axis2=-1)
    return np.linalg.det(gram) > 1e-9 * size**2


def idealise(weights: dict[str, np.ndarray], circle: Circle) -> dict[str, np.ndarray]:
    """Every neuron replaced by its fitted wave, with the phases that it has.

    What is left is the periodic network inside. (Setting the read-out's phase to the sum of the
    input phases as well would write the analytic solution into any network, trained or not.) Rows
    of inputs off the circle (zero factors), and classes that no position answers, keep their
    weights."""
    fit = fit_waves(weights, circle)
    parts = _parts(weights)
    bases = _bases(circle, parts.shape[1])
    directions = np.stack([np.cos(fit.phase), np.sin(fit.phase)])
    pairs = fit.amplitude * directions  # (2, S + 1, N)
    chosen = bases[:, fit.frequency].swapaxes(0, 1)  # (N, S + 1, p, 2)
    waves = np.einsum("isk,ksni->snk", pairs, chosen)
    on_circle = (bases != 0).any(axis=(1, 3))[..., None]
    parts = np.where(on_circle, waves, parts)
    return {"U": parts[:-1], "W": parts[-1].T}


# -- what can be learned ---------------------------------------------------------------------------


def majority_share(labels: np.ndarray) -> float:
    """The accuracy of the constant answer: chance where some answers are more frequent."""
    return float(np.bincount(labels).max() / len(labels))


def excluded(table: np.ndarray, group: str) -> bool:
    """Certificate that a table (p, p) is of no form h(g_1(n_1) + g_2(n_2)) over a group.

    group   Z_p ("add") or Z_(p-1) ("multiply": rows and columns of zero factors, which are
            constant, are left out)
    False: not excluded by this test. If as many distinct columns remain as the group has elements,
    g_2 reaches each of them once, so every row must hold the same multiset of values; likewise for
    rows. More distinct rows or columns than elements exclude the form as well."""
    order = len(table)
    if group == "multiply":
        order -= 1
        rows = (table != table[:, :1]).any(axis=1)
        columns = (table != table[:1]).any(axis=0)
        table = table[rows][:, columns]
    for t in (table, table.T):
        distinct = np.unique(t, axis=1)
        count = distinct.shape[1]
        values = np.sort(distinct, axis=1)
        if count > order or (count == order and (values != values[:1]).any()):
            return True
    return False


def siblings(table: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """For every test input the number of training inputs in its equivalence class.

    The class: a row equal to its row and a column equal to its column. A network that knows the
    equal rows and columns answers inputs with siblings from memory. table (p, p), train and test
    numbers of inputs as by ModularTask.split. quotient coverage = mean(siblings > 0)"""
    _, row = np.unique(table, axis=0, return_inverse=True)
    _, column = np.unique(table, axis=1, return_inverse=True)
    row = row.ravel()
    column = column.ravel()
    classes = (row[:, None] * (column.max() + 1) + column).ravel()
    known = np.bincount(classes[train], minlength=classes.max() + 1)
    return known[classes[test]]
