"""What predict_lcg.py measures: answers of the network, and of classical predictors beside it."""

import numpy as np

from tinygrok.probes import digits
from tinygrok.tasks import lcg
from tinygrok.tasks.pcg import PcgData

LAST = 8  # numbers at the end of the context over which accuracies are taken


def possible(data, m):
    """How many numbers a sequence mod m can show."""
    return data.vocab if isinstance(data, PcgData) else m


def solvers(data):
    """{predictor: numbers (B, T), modulus -> answers (B, T)}, for comparison.

    Where the state is hidden they have no difference to solve; the look-backs remain, with zeros
    for the bits that are hidden."""
    if not isinstance(data, PcgData):
        return lcg.SOLVERS

    def look_back(order):
        def predict(shown, m):
            unit = m // data.vocab
            exact = object if m > 2**62 else int
            return lcg.look_back(shown.astype(exact) * unit, m, order) // unit

        return predict

    return {f"look-back order {order}": look_back(order) for order in (2, 3)}


def digit_labels(data, by_digit):
    """{what the figure calls a digit: its accuracies} of {period: accuracies}.

    Digit 2^i of an output is just its bit i, counted from 1."""
    if isinstance(data, PcgData):
        return {f"bit {i}": curve for i, curve in enumerate(by_digit.values(), 1)}
    return {f"digit of period {period}": curve for period, curve in by_digit.items()}


def elements_needed(accuracy, level):
    """The fewest numbers in context from which on the accuracy stays at least at a level.

    accuracy (T,), with 1, 2, ..., T numbers in context. None if it never does."""
    reached = np.asarray(accuracy) >= level
    missed = np.flatnonzero(~reached)
    needed = int(missed[-1]) + 2 if len(missed) else 1
    return needed if needed <= len(reached) else None


def summary(curve):
    """What a curve (T,) of accuracy by numbers in context comes to."""
    return {
        "accuracy_last": float(curve[-LAST:].mean()),
        "accuracy_by_context": np.round(curve, 4).tolist(),
        "numbers_to_60": elements_needed(curve, 0.6),
        "numbers_to_90": elements_needed(curve, 0.9),
    }


def answers(data, name, test, run):
    """(results, {predictor: accuracy by numbers in context}, {digit: accuracy}) of a test set"""
    numbers, multipliers = test
    m = data.tests[name][0]
    target = numbers[:, 1:]
    predicted = data.numbers(run.predict(run.sets[name])[0])
    right = predicted == target
    curves = {"transformer": right.mean(axis=0)}
    for solver, predict in solvers(data).items():
        curves[solver] = (predict(numbers[:, :-1], m) == target).mean(axis=0)
    values = possible(data, m)
    if isinstance(data, PcgData):
        curves["chance"] = np.full_like(curves["transformer"], 1 / values)
    # The power 2^s in a - 1 decides how hard a is.
    rated = m % 4 == 0 and multipliers.min() > 1
    by_s = digits.by_valuation(right, multipliers) if rated else {}
    results = summary(curves["transformer"])
    results["chance"] = 1 / values
    results["accuracy_by_s"] = {s: float(curve[-LAST:].mean()) for s, curve in by_s.items()}
    by_digit = digits.digit_accuracy(predicted, target, lcg.prime_factors(values))
    return results, curves, by_digit
