"""What the small frequencies of periodic neurons are for, and the neurons without a frequency: a
network with some of them taken out, or put in with other phases."""

import numpy as np

from tinygrok.engine.rng import generator
from tinygrok.probes import neurons
from tinygrok.probes.fourier import neuron_ipr, neuron_rows, spectrum
from tinygrok.probes.representation import unit

PERIODIC = 0.5  # the IPR from which on a neuron counts as periodic
MULTIPLES = 8  # of the main frequency, in the figure
PARTS = ("whole", "no secondary peaks", "secondary, random", "no others", "others, shuffled")


def common_frequency(weights, order=None):
    """(N,) the strongest frequency of the rows of every neuron together, not 0."""
    strength = np.sum([unit(spectrum(x)) for x in neuron_rows(weights, order)], axis=0)
    return 1 + strength[:, 1:].argmax(axis=1)


def parts(weights, seed, order=None):
    """{name in PARTS: network}: the whole, and what it is when something is changed.

    no secondary peaks   periodic neurons keep their main frequency alone
    secondary, random    their other frequencies keep the amplitude and get random phases
    no others            the neurons that are not periodic are removed
    others, shuffled     they get each other's read-outs
    """
    rng = generator(seed, "probes")
    periodic = np.nan_to_num(neuron_ipr(weights, order)) >= PERIODIC
    main, rest = neurons.filtered(weights, 1, order)
    scrambled = {name: main[name] + x for name, x in _random_phases(rest, rng, order).items()}
    others = np.flatnonzero(~periodic)
    removed = weights["W"].copy()
    removed[others] = 0
    shuffled = weights["W"].copy()
    shuffled[others] = shuffled[rng.permutation(others)]
    networks = [weights, _replaced(weights, main, periodic)]
    networks += [_replaced(weights, scrambled, periodic)]
    networks += [weights | {"W": removed}, weights | {"W": shuffled}]
    return dict(zip(PARTS, networks, strict=True))


def _replaced(weights, by, chosen):
    """The network with some of its neurons, a mask (N,), taken from another."""
    U = np.where(chosen, by["U"], weights["U"])
    W = np.where(chosen[:, None], by["W"], weights["W"])
    return weights | {"U": U, "W": W}


def _random_phases(weights, rng, order=None):
    """The weights with random phases of all frequencies but 0; the amplitudes stay."""
    along = slice(None) if order is None else order
    found = {name: weights[name].copy() for name in ("U", "W")}

    def scrambled(x):
        F = np.fft.rfft(x)
        turns = np.exp(2j * np.pi * rng.random(F.shape))
        turns[:, 0] = 1
        return np.fft.irfft(F * turns, n=x.shape[1])

    rows = neuron_rows(weights, order)
    for s, x in enumerate(rows[:-1]):
        found["U"][s, along] = scrambled(x).T
    found["W"][:, along] = scrambled(rows[-1])
    return found


def unwound(weights, order=None):
    """{"U", "W"}: (MULTIPLES + 1,) shares of the power of periodic neurons in 0, 1, 2, ... times
    their main frequency, means over these neurons; nan where there are none.

    Without peaks a multiple other than 1 has the share of noise."""
    rows = neuron_rows(weights, order)
    periodic = np.nan_to_num(neuron_ipr(weights, order)) >= PERIODIC
    frequency = common_frequency(weights, order)[periodic]
    n = rows[0].shape[1]
    multiples = np.arange(MULTIPLES + 1)[:, None] * frequency % n
    folded = np.minimum(multiples, n - multiples)
    found = {}
    for name, chosen in (("U", rows[:-1]), ("W", rows[-1:])):
        shares = []
        for x in chosen:
            power = spectrum(x[periodic]) ** 2
            power /= power.sum(axis=1, keepdims=True)
            shares.append(np.take_along_axis(power, folded.T, axis=1))
        known = np.concatenate(shares)
        found[name] = known.mean(axis=0) if len(known) else np.full(MULTIPLES + 1, np.nan)
    return found


def unwanted(z, labels):
    """The share of the power of logits z (B, C) that is not the answer: 1 - cos^2 of the angle
    between z and the one-hot y, both less their means over the classes, over all examples.

    Their scale, which decay shrinks, does not matter. 0 for z ~ y, about 1 for noise."""
    centred = z - z.mean(axis=1, keepdims=True, dtype=float)
    answers = np.take_along_axis(centred, labels[:, None], axis=1).sum()
    power = np.square(centred).sum() * len(labels) * (1 - 1 / z.shape[1])
    return float(1 - answers**2 / power) if power else np.nan


def power_of_others(weights, order=None):
    """The share of the squared weights that neurons which are not periodic have."""
    others = np.nan_to_num(neuron_ipr(weights, order)) < PERIODIC
    squares = np.square(weights["U"], dtype=float).sum(axis=(0, 1))
    squares += np.square(weights["W"], dtype=float).sum(axis=1)
    total = squares.sum()
    return float(squares[others].sum() / total) if total else np.nan
