"""What an exercise is: what it gives and asks for, and what is to come out, by measurement."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import _exercises_given as given
import _exercises_mistakes as wrong
import numpy as np

from tinygrok.audit.checker import central_difference, complex_step, direction
from tinygrok.audit.operations import seeded
from tinygrok.engine.errors import InputError

STEPS = 1e-10  # what complex steps tell of the largest entry, and a formula keeps of it
DIFFERENCES = 1e-6
ROUNDING = 1e-9  # for two numbers to be the same


@dataclass
class Case:
    """Inputs of an exercise: tensors, whose gradients are asked for, and settings.

    sizes   letters as in the docstrings; they differ from case to case, which tells a factor's name
    """

    sizes: dict[str, int]
    tensors: dict[str, np.ndarray]
    settings: tuple
    rng: np.random.Generator


@dataclass
class Expected:
    """What should come out, and the error allowed, as a share of the largest entry."""

    value: np.ndarray
    tolerance: float = STEPS


@dataclass
class Exercise:
    """A forward that is given, and its backward, which is asked for.

    name      that of the file, and the beginning of the functions' names
    level     1 to 3
    learnt    what one learns, in a line
    solution  where the library has it
    returns   names of what is asked for, in order
    draw      (rng, **sizes) -> ({name: tensor}, settings), what the forward takes
    sizes     those of every case, "B=5 K=3 N=7"
    """

    name: str
    level: int
    learnt: str
    solution: str
    returns: tuple[str, ...]
    draw: Callable
    sizes: tuple[str, ...]
    asks: str = "backward"

    @property
    def forward(self) -> Callable | None:
        """As it is written into the file; None: there is none."""
        return getattr(given, f"{self.name}_forward", None)

    @property
    def asked(self) -> Callable:
        """The function to write, empty."""
        return getattr(given, f"{self.name}_{self.asks}")

    @property
    def mistakes(self) -> list[Callable]:
        """Wrong versions of what is asked for."""
        begins = f"{self.name}_"
        return [function for name, function in vars(wrong).items() if name.startswith(begins)]

    def known(self, arguments: tuple) -> list[tuple[str, tuple]]:
        """(hint, results) of every known mistake; None for what it says nothing of."""
        found = []
        for function in self.mistakes:
            results = listed(self.answer(function, arguments))
            missing = len(self.returns) - len(results)
            found.append((inspect.getdoc(function) or "", results + (None,) * missing))
        return found

    def case(self, number: int) -> Case:
        rng = seeded(f"{self.name} {number}")
        words = self.sizes[number].split()
        sizes = {letter: int(size) for letter, size in (word.split("=") for word in words)}
        return Case(sizes, *self.draw(rng, **sizes), rng)

    def arguments(self, forward: Callable, case: Case) -> tuple:
        """What the function asked for takes: a cotangent for every output, and the cache."""
        outputs, cache = called(forward, case.tensors, case.settings)
        cotangents = [case.rng.standard_normal(np.shape(y)) for y in listed(outputs)]
        return (*cotangents, cache)

    def answer(self, asked: Callable, arguments: tuple) -> Sequence[np.ndarray]:
        return asked(*arguments)

    def expected(self, forward: Callable, case: Case, arguments: tuple) -> list[Expected]:
        """The gradients of <dy, y>, entry by entry."""
        *cotangents, _ = arguments
        gradients = []
        for name, x in case.tensors.items():

            def value(x, name=name):
                tensors = case.tensors | {name: x}
                outputs, _ = called(forward, tensors, case.settings)
                pairs = zip(cotangents, listed(outputs), strict=True)
                return sum(np.sum(dy * y) for dy, y in pairs)

            gradients.append(measured(value, x))
        return gradients


def called(forward: Callable, tensors: dict, settings: tuple) -> tuple:
    """(outputs, cache), from copies: a forward may write into what it gets."""
    result = forward(*map(np.array, tensors.values()), *settings)
    if not isinstance(result, tuple) or len(result) != 2:
        raise InputError(f"{forward.__name__} must return two things, as it was given")
    return result


def listed(outputs) -> tuple:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def measured(value: Callable, x: np.ndarray) -> Expected:
    """The gradient of the number value(x), by complex steps; by differences where the two do not
    agree along some direction, as for a forward that is not analytic."""
    d = direction(seeded("direction"), x.shape)

    def along(t):
        return value(x + t * d)

    slope = central_difference(along)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # complex numbers cast to real ones
            gradient = _slopes(complex_step, value, x)
    except Exception:
        return Expected(_slopes(central_difference, value, x), DIFFERENCES)
    gap = abs((gradient * d).sum() - slope)
    if gap <= DIFFERENCES * max(np.linalg.norm(gradient), 1.0):
        return Expected(gradient)
    return Expected(_slopes(central_difference, value, x), DIFFERENCES)


def _slopes(slope: Callable, value: Callable, x: np.ndarray) -> np.ndarray:
    gradient = np.empty(x.shape)
    for at in np.ndindex(x.shape):
        unit = np.zeros(x.shape)
        unit[at] = 1

        def along(t, unit=unit):
            return value(x + t * unit)

        gradient[at] = slope(along)
    return gradient


class Steps(Exercise):
    """AdamW: several steps from m = v = 0; sizes has their number, T."""

    def arguments(self, forward, case: Case) -> tuple:
        gradients = case.rng.standard_normal((case.sizes["T"], *case.tensors["w"].shape))
        return (case.tensors["w"], gradients, *case.settings)

    def answer(self, asked, arguments):
        w, gradients, *settings = arguments
        m = np.zeros_like(w)
        v = np.zeros_like(w)
        for t, g in enumerate(gradients, 1):
            w, m, v = asked(w, g, m, v, t, *settings)
        return w, m, v

    def expected(self, forward, case: Case, arguments) -> list[Expected]:
        """m and v as sums over all gradients, and their means by the sums of the weights."""
        w, gradients, lr, weight_decay, betas, eps = arguments
        for T in range(1, len(gradients) + 1):
            sums = []
            means = []
            for b, terms in zip(betas, (gradients[:T], gradients[:T] ** 2), strict=True):
                weights = (1 - b) * b ** np.arange(T)[::-1]
                sums.append(np.tensordot(weights, terms, 1))
                means.append(sums[-1] / weights.sum())
            mean, square = means
            w = w - lr * weight_decay * w - lr * mean / (np.sqrt(square) + eps)
        return [Expected(x) for x in (w, *sums)]


class Probe(Exercise):
    """The APJN by one probe: sums of squares of measured gradients, layer by layer."""

    def arguments(self, forward, case: Case) -> tuple:
        y, cache = called(forward, case.tensors, case.settings)
        v = case.rng.standard_normal(y.shape)
        return v / np.sqrt((v * v).sum(axis=-1, keepdims=True)), cache

    def expected(self, forward, case: Case, arguments) -> list[Expected]:
        v, _ = arguments
        (weights,) = case.settings
        (h,) = case.tensors.values()
        norms = []
        for number in range(len(weights) + 1):
            rest = weights[number:]

            def value(h, rest=rest):
                y, _ = forward(h, rest)
                return (v * y).sum()

            gradient = measured(value, h)
            norms.append((gradient.value**2).sum() / len(h))
            h, _ = forward(h.copy(), rest[:1])
        return [Expected(np.array(norms), gradient.tolerance)]


# -- what is found ---------------------------------------------------------------------------------


@dataclass
class Found:
    """One tensor in one case.

    got        what the user's function returned
    want       what was measured; error is allowed up to `tolerance` of its largest entry
    others     {name: what was expected} of all tensors of the case
    wrong      {hint: what a known mistake gives}
    """

    name: str
    case: Case
    got: np.ndarray
    want: np.ndarray
    tolerance: float
    others: dict[str, np.ndarray]
    wrong: dict[str, np.ndarray]

    @property
    def size(self) -> float:
        """The largest entry, or a thousandth where all are smaller."""
        return max(float(np.abs(self.want).max()), 1e-3)

    @property
    def error(self) -> float:
        """Largest difference, as a share of the largest entry."""
        if self.got.shape != self.want.shape:
            return np.inf
        return float(np.abs(self.got - self.want).max()) / self.size

    @property
    def right(self) -> bool:
        return bool(self.error <= self.tolerance)  # nan is not

    def entries(self) -> np.ndarray:
        """Where it is wrong; the shape is right."""
        return ~(np.abs(self.got - self.want) <= self.tolerance * self.size)


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal to rounding, b not all zeros."""
    if a.shape != b.shape or not np.isfinite(a).all():
        return False
    size = np.abs(b).max(initial=0.0)
    return bool(size > 0 and np.abs(a - b).max() <= ROUNDING * size)
