"""Phases of learning from corrupted labels, and the times at which a network groks and unlearns."""

import numpy as np

PHASES = (
    "Memorization",
    "Coexistence",
    "Partial Inversion",
    "Full Inversion",
    "Forgetting",
    "Confusion",
    "Diverged",
)
GENERALISES = 0.9


def phase(train: float, test: float, best_test: float, corruption: float, p: int) -> str:
    """The phase of a network by its final accuracies, at corruption xi.

    test >= 0.9:  Coexistence        train >= 0.9     memorised the corrupted labels and generalises
                  Partial Inversion  train >= border  has let go of some of them
                  Full Inversion     train <  border  of nearly all
    test <  0.9:  Memorization       train >= 0.9
                  Forgetting         the run had reached test >= 0.9 (best_test), and lost it
                  Confusion          it never did
    Source: To grok or not to grok, appendix C, table 2. The table does not separate the last two;
    their criterion here is the one by which the text describes them. Its border 1.05 - xi lies 0.05
    above perfect inversion, 1 - xi + xi/p with chance hits; where p is so small that these take up
    the margin, the border is 1 - xi + xi/p + 0.04. "Diverged" is for runs whose loss did not stay
    finite. With xi = 0 there is nothing to invert: Coexistence is plain generalisation.

    >>> phase(train=0.66, test=1.0, best_test=1.0, corruption=0.35, p=97)
    'Full Inversion'
    """
    if test >= GENERALISES:
        if train >= GENERALISES:
            return "Coexistence"
        perfect_inversion = 1 - corruption + corruption / p
        border = max(1.05 - corruption, perfect_inversion + 0.04)
        return "Partial Inversion" if train >= border else "Full Inversion"
    if train >= GENERALISES:
        return "Memorization"
    return "Forgetting" if best_test >= GENERALISES else "Confusion"


def first_step(steps, reached) -> int | None:
    """The first step at which something is reached (booleans, one a step)."""
    at = np.flatnonzero(reached)
    return int(steps[at[0]]) if len(at) else None


def step_of_99(history: dict, split: str) -> int | None:
    """The first step of a single run with an accuracy of at least 0.99 on a split."""
    return first_step(history["step"], np.asarray(history[f"{split}_accuracy"]) >= 0.99)


def two_stages(steps, test, corrupted) -> tuple[int | None, int | None]:
    """(step_grok, step_unlearn) of a run; None for what did not happen.

    The first step with test accuracy >= 0.9, and the first one with accuracy on the corrupted
    labels, as given, below 0.5 after it had been above; corrupted may be nan."""
    corrupted = np.asarray(corrupted)
    had_memorised = np.logical_or.accumulate(corrupted > 0.5)
    step_grok = first_step(steps, np.asarray(test) >= GENERALISES)
    return step_grok, first_step(steps, had_memorised & (corrupted < 0.5))


def phase_history(history: dict, corruption: float, p: int) -> list[str]:
    """The phase at every measured step of a single run: its name, had the run stopped there."""
    best = np.maximum.accumulate(history["test_accuracy"])
    rows = zip(history["train_accuracy"], history["test_accuracy"], best, strict=True)
    return [phase(train, test, top, corruption, p) for train, test, top in rows]
