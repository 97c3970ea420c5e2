"""Activations with first and second derivative.

The expressions stand in engine/kernels.py, for NumPy, for CUDA and as text, one entry an
activation; `activation_table` prints the text."""

from ..engine.device import Array, Device
from ..engine.errors import InputError
from ..engine.kernels import ACTIVATIONS, Activation


def resolve(kind: str) -> tuple[Activation, tuple[int, ...]]:
    """The kernels of a name, and what they take first.

    "relu" -> (its kernels, ());  "power4" -> (those of x^k, (4,)). Raises InputError for an unknown
    name."""
    exponent = kind.removeprefix("power")
    if exponent != kind and exponent.isdecimal() and 1 <= int(exponent) <= 64:
        return ACTIVATIONS["power"], (int(exponent),)
    if kind not in ACTIVATIONS or kind == "power":
        names = ", ".join(sorted(set(ACTIVATIONS) - {"power"}))
        raise InputError(f"unknown activation {kind!r}: choose {names} or power<k>, k = 1 to 64")
    return ACTIVATIONS[kind], ()


def activation_help() -> str:
    """One line with the name and formula of every activation, for --help.

    >>> activation_help().split("; ")[:3]
    ['identity: x', 'square: x**2', 'power<k>: x**k']
    """
    lines = (f"{_shown(name)}: {entry.formula}" for name, entry in ACTIVATIONS.items())
    return "; ".join(lines)


def activation_table(*kinds: str) -> str:
    """f, f' and f'' of activations as Python expressions of x, all of them unless some are named.

    >>> print(activation_table("power4"))
    power<k>
        f   = x**k
        f'  = k*x**(k - 1)
        f'' = k*(k - 1)*x**(k - 2)
    """
    chosen = {"power" if k.startswith("power") else k for k in kinds} or set(ACTIVATIONS)
    lines = []
    for name, entry in ACTIVATIONS.items():
        if name in chosen:
            lines.append(_shown(name))
            lines.append(f"    f   = {entry.formula}")
            lines.append(f"    f'  = {entry.slope}")
            lines.append(f"    f'' = {entry.curvature}")
            lines.extend(f"    {line}" for line in entry.given.split("; ") if line)
    return "\n".join(lines)


def _shown(name: str) -> str:
    return "power<k>" if name == "power" else name


def activation_forward(dev: Device, x: Array, kind: str, out=None):
    """y = f(x) element by element, x and y of one shape; f of every kind: activation_table()

    Backward reads x: out may be x where f' is the same at f(x), as for ReLU."""
    activation, args = resolve(kind)
    out = dev.empty(x.shape) if out is None else out
    activation.f(dev, *args, x, out)
    return out, (x, kind)


def activation_backward(dev: Device, dy: Array, cache: tuple, dx=None):
    """dx = f'(x) dy, f' as in activation_table(); dx may be dy itself."""
    x, kind = cache
    activation, args = resolve(kind)
    dx = dev.empty(x.shape) if dx is None else dx
    activation.df(dev, *args, x, dy, dx)
    return dx


def activation_second(dev: Device, x: Array, kind: str, out=None) -> Array:
    """f''(x), as in activation_table().

    Gradients of Jacobian norms need it (criticality/autoinit.py)."""
    activation, args = resolve(kind)
    out = dev.empty(x.shape) if out is None else out
    activation.d2f(dev, *args, x, out)
    return out


def activation_tangent(dev: Device, xdot: Array, cache: tuple):
    """ydot = f'(x) xdot"""
    return activation_backward(dev, xdot, cache), xdot


def activation_pair(dev: Device, xbar: Array, lam: Array, cache: tuple, xdot: Array):
    """xbar <- f'(x) xbar + f''(x) xdot lam        lam <- f'(x) lam

    The adjoints of x and xdot from those of y = f(x) and ydot = f'(x) xdot, xbar and lam:
    <xbar, dy> + <lam, dydot> = <xbar, f'(x) dx> + <lam, f''(x) xdot dx + f'(x) dxdot>
    """
    x, kind = cache
    curved = activation_second(dev, x, kind) * xdot * lam
    xbar = curved + activation_backward(dev, xbar, cache)
    return xbar, activation_backward(dev, lam, cache)
