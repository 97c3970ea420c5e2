"""Any polynomial mod p as a network: multiplication experts, a sharp softmax, one addition expert.

    t^(s) = expert of monomial s, without its coefficient    (multiplication.py)
    u^(s) = softmax(beta t^(s)), or the one-hot vector of its largest entry
    z     = W (U^(1) u^(1) + ... + U^(S) u^(S))^S            (addition.py, with the coefficients of
                                                              the S monomials)

Why beta hardly matters for exact experts: the softmax of a one-hot vector is (x - y) e + y (1, ...,
1), and a cosine over a full circle sums to 0, so only the neuron of frequency 0 sees the constant:
z = (x - y)^S (one-hot - 1/p) + 1/p.
Source: Grokking modular polynomials, eq. 10-13. (Its table of errors belongs to logits
of 3/4 this size: 1/N for 2^S/(N S!) at S = 3.)
"""

import ast
import re
from collections.abc import Callable

import numpy as np

from ..engine.device import Array, Device
from ..engine.rng import generator
from ..ops.activation import activation_forward
from ..ops.linear import linear_forward
from ..tasks.modular import multiplication, polynomial, require_prime, separable
from .addition import MAX_TERMS, AnalyticError, addition_weights
from .multiplication import multiplication_weights
from .verify import evaluator, two_layer

# -- the text --------------------------------------------------------------------------------------

VARIABLES = 9
MAX_MONOMIALS = 1000
MAX_POWER = 100
MAX_NUMBER = 10**15  # in the text
MAX_COEFFICIENT = 10**300  # of what products make of them
ONE: tuple[int, ...] = (0,) * VARIABLES
Polynomial = dict[tuple[int, ...], int]  # {exponents of the variables: coefficient}


class PolynomialError(AnalyticError):
    """A text that is no polynomial in n1, n2, ...; the message says where."""


def parse(text: str) -> Polynomial:
    """ "2*n1^4*n2 + 3*(n1 - n2)^2" -> {(a_1, ..., a_S): c}, multiplied out.

    S is the highest variable named. Sums, differences, products and powers by whole numbers, of
    integers and n1 ... n9. Python's parser reads the text, with its precedence; nothing but the
    expressions in _expand has a meaning.

    >>> parse("(n1 + n2)^2 - 5")
    {(2, 0): 1, (1, 1): 2, (0, 2): 1, (0, 0): -5}
    """
    shown = text if len(text) <= 60 else text[:57] + "..."
    source = text.strip().replace("^", "**")
    try:
        if foreign := re.search(r"[^n0-9 +*^()-]|\*\*", text):
            known = f"the variables are n1, n2, ..., n{VARIABLES}"
            raise PolynomialError(f"{foreign[0]!r} has no meaning here; {known}")
        total = _expand(ast.parse(source, mode="eval").body)
    except PolynomialError as error:
        raise PolynomialError(f"polynomial {shown!r}: {error}") from None
    except SyntaxError as error:
        before = source[: (error.offset or 1) - 1].replace("**", "^")[-20:]
        raise PolynomialError(f"polynomial {shown!r}: {error.msg[:60]}, after {before!r}") from None
    except (RecursionError, MemoryError):
        problem = "too many nested parentheses, or too many terms"
        raise PolynomialError(f"polynomial {shown!r}: {problem}") from None
    used = [s for s in range(VARIABLES) if any(m[s] for m in total)]
    if not used:
        raise PolynomialError(f"polynomial {text!r} has no variable")
    return {m[: used[-1] + 1]: c for m, c in total.items()}


def _expand(node: ast.expr) -> Polynomial:
    """The expression multiplied out, with the exponents of all nine variables."""
    match node:
        case ast.Constant(int(value)) if value < MAX_NUMBER:
            return {ONE: value}
        case ast.Name(name) if re.fullmatch("n[1-9]", name):
            return {tuple(int(name == f"n{s + 1}") for s in range(VARIABLES)): 1}
        case ast.UnaryOp(ast.USub(), operand):
            return _times({ONE: -1}, _expand(operand))
        case ast.BinOp(left, ast.Add(), right):
            return _collect([*_expand(left).items(), *_expand(right).items()])
        case ast.BinOp(left, ast.Sub(), right):
            return _expand(ast.BinOp(left, ast.Add(), ast.UnaryOp(ast.USub(), right)))
        case ast.BinOp(left, ast.Mult(), right):
            return _times(_expand(left), _expand(right))
        case ast.BinOp(ast.Name() as name, ast.Pow(), ast.Constant(int(k))) if k < MAX_NUMBER:
            return {tuple(k * a for a in m): 1 for m in _expand(name)}
        case ast.BinOp(base, ast.Pow(), ast.Constant(int(k))) if k <= MAX_POWER:
            factor = _expand(base)
            result: Polynomial = {ONE: 1}
            for _ in range(k):
                result = _times(result, factor)
            return result
    part = ast.unparse(node).replace(" ** ", "^")[:60]
    raise PolynomialError(
        f"{part!r} is no variable, integer below 10^15 or power by an integer "
        f"(of a sum: at most {MAX_POWER})"
    )


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    products = []
    for m, c in a.items():
        for n, d in b.items():
            exponents = tuple(i + j for i, j in zip(m, n, strict=True))
            products.append((exponents, c * d))
    return _collect(products)


def _collect(monomials: list[tuple[tuple[int, ...], int]]) -> Polynomial:
    """The sum of monomials (exponents, coefficient): equal exponents merged."""
    result: Polynomial = {}
    for m, c in monomials:
        result[m] = result.get(m, 0) + c
    largest = max(map(abs, result.values()), default=0)
    if len(result) > MAX_MONOMIALS or largest > MAX_COEFFICIENT:
        raise PolynomialError(
            f"more than {MAX_MONOMIALS} monomials, or a coefficient of more than 300 digits"
        )
    return result


# -- the network -----------------------------------------------------------------------------------


def reduce(monomials: Polynomial, p: int) -> tuple[Polynomial, int]:
    """Monomials that are different functions on Z_p, and the constant.

    n^a = n^b for a, b > 0 equal mod p - 1."""

    def reduced(a: int) -> int:
        return (a - 1) % (p - 1) + 1 if a else 0

    merged = _collect([(tuple(map(reduced, m)), c) for m, c in monomials.items()])
    variables = len(next(iter(monomials)))
    constant = merged.pop((0,) * variables, 0)
    return {m: c % p for m, c in merged.items() if c % p}, constant % p


class PolynomialNetwork:
    """The network of a polynomial {(a_1, ..., a_S): c} mod p; parse() makes one of a text.

    See the top of this file.

    experts   [(variables, weights)], one a monomial: a product of the variables that occur in it
              (n^0 is 1, also at n = 0)
    top       weights of the addition expert, which solves top_task; the constant shifts its
              answers
    beta      sharpness of the softmax; None takes the largest entry
    widths    of the experts and of the top, as in multiplication_weights and addition_weights
    Raises TaskError for a composite p, AnalyticError for a polynomial that is constant mod p or a
    width that does not fit.

    >>> from tinygrok.analytic.verify import verify
    >>> network = PolynomialNetwork(7, parse("n1^2*n2 + 3*n2"))
    >>> network.width, verify(network, network.task).accuracy
    (26, 1.0)
    """

    def __init__(
        self, p, monomials: Polynomial, phases="exact", widths=(None, None), beta=100.0, rng=None
    ):
        p = require_prime(p, "a polynomial network")
        rng = rng or generator(0, "init")
        self.p = p
        self.beta = beta
        self.task = polynomial(p, monomials)
        self.monomials, self.constant = reduce(monomials, p)
        if not self.monomials:
            raise AnalyticError(f"the polynomial is constant mod {p}")
        if len(self.monomials) > MAX_TERMS:
            count = len(self.monomials)
            raise AnalyticError(f"{count} monomials: the network adds at most {MAX_TERMS}")
        expert_width, top_width = widths
        self.experts = []
        for m in self.monomials:
            variables = [s for s, a in enumerate(m) if a]
            product = multiplication(p, tuple(m[s] for s in variables))
            weights = multiplication_weights(product, expert_width, phases, rng)
            self.experts.append((variables, weights))
        coefficients = list(self.monomials.values())
        tables = np.outer(coefficients, np.arange(p))
        self.top_task = separable(p, tables, np.arange(p) + self.constant)
        self.top = addition_weights(self.top_task, top_width, phases, rng)

    @property
    def width(self) -> int:
        """Neurons of the widest part."""
        parts = [self.top] + [weights for _, weights in self.experts]
        return max(len(weights["W"]) for weights in parts)

    def evaluator(self, dev: Device) -> Callable[[np.ndarray], Array]:
        """inputs (S, B) on the host -> logits (B, p) on the device"""
        experts = [(variables, evaluator(dev, weights)) for variables, weights in self.experts]
        kind = two_layer(self.top).activation
        U = dev.to_device(self.top["U"])
        W = dev.to_device(self.top["W"])

        def logits(n: np.ndarray) -> Array:
            h = 0
            for s, (variables, expert) in enumerate(experts):
                u = self.sharpen(dev, expert(n[variables]))
                h = h + linear_forward(dev, u, U[s])[0]
            a = activation_forward(dev, h, kind)[0]
            return linear_forward(dev, a, W)[0]

        return logits

    def sharpen(self, dev: Device, t: Array) -> Array:
        """u = softmax(beta t), or the one-hot vector of the largest entry; overwrites t (B, p)."""
        t -= t.max(axis=-1, keepdims=True)
        if self.beta is None:
            return (t == 0).astype(dev.dtype)
        t *= self.beta
        dev.xp.exp(t, out=t)
        t /= t.sum(axis=-1, keepdims=True)
        return t
