"""Activations with first and second derivative. The expressions stand in engine/kernels.py, NumPy
beside CUDA."""

from ..engine.device import Array, Device
from ..engine.errors import InputError
from ..engine.kernels import ACTIVATIONS, Activation


def resolve(kind: str) -> tuple[Activation, tuple[int, ...]]:
    """ "relu" -> (its kernels, ());  "power4" -> (the power kernels, (4,)). Raises InputError for an unknown name."""
    if kind.startswith("power") and kind[5:].isdecimal() and 1 <= int(kind[5:]) <= 64:
        return ACTIVATIONS["power"], (int(kind[5:]),)
    if kind not in ACTIVATIONS or kind == "power":
        names = ", ".join(sorted(set(ACTIVATIONS) - {"power"}))
        raise InputError(f"unknown activation {kind!r}: choose {names} or power<k>, k = 1 to 64")
    return ACTIVATIONS[kind], ()


def activation_forward(dev: Device, x: Array, kind: str, out: Array | None = None):
    """y = f(x) element by element, x and y of one shape:

    identity  x                    relu   max(x, 0)             tanh       tanh(x)
    square    x^2                  gelu   x Phi(x)              gelu_tanh  x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
    power<k>  x^k                  erf    2/sqrt(pi) int_0^x exp(-t^2) dt
    leaky_relu  x if x > 0 else 0.01 x
    with Phi(x) = (1 + erf(x/sqrt 2))/2 the normal distribution function.
    """
    activation, args = resolve(kind)
    out = dev.empty(x.shape) if out is None else out
    activation.f(dev, *args, x, out)
    return out, (x, kind)


def activation_backward(dev: Device, dy: Array, cache: tuple, dx: Array | None = None):
    """dx = f'(x) dy (dx may be dy itself), phi(x) = exp(-x^2/2)/sqrt(2 pi):

    identity  1                    relu   1 if x > 0 else 0     tanh       1 - tanh(x)^2
    square    2 x                  gelu   Phi(x) + x phi(x)     gelu_tanh  (1 + t)/2 + x/2 (1 - t^2) u',  t = tanh(u(x))
    power<k>  k x^(k-1)            erf    2/sqrt(pi) exp(-x^2)
    leaky_relu  1 if x > 0 else 0.01
    """
    x, kind = cache
    activation, args = resolve(kind)
    dx = dev.empty(x.shape) if dx is None else dx
    activation.df(dev, *args, x, dy, dx)
    return dx


def activation_second(dev: Device, x: Array, kind: str, out: Array | None = None) -> Array:
    """f''(x), which gradients of Jacobian norms need (AutoInit, arXiv 2206.13568):

    identity  0                    relu   0 (x != 0)            tanh       -2 tanh(x) (1 - tanh(x)^2)
    square    2                    gelu   (2 - x^2) phi(x)      gelu_tanh  (1 - t^2)(u' + x/2 (u'' - 2 t u'^2))
    power<k>  k (k-1) x^(k-2)      erf    -4/sqrt(pi) x exp(-x^2)
    leaky_relu  0 (x != 0)
    """
    activation, args = resolve(kind)
    out = dev.empty(x.shape) if out is None else out
    activation.d2f(dev, *args, x, out)
    return out


def activation_tangent(dev: Device, xdot: Array, cache: tuple):
    """ydot = f'(x) xdot"""
    return activation_backward(dev, xdot, cache), xdot


def activation_pair(dev: Device, xbar: Array, lam: Array, cache: tuple, xdot: Array):
    """Adjoints of x and xdot from those of y = f(x) and ydot = f'(x) xdot (AutoInit, arXiv
    2206.13568):

    xbar <- f'(x) xbar + f''(x) xdot lam        lam <- f'(x) lam
    """
    x, kind = cache
    curved = activation_second(dev, x, kind) * xdot * lam
    return curved + activation_backward(dev, xbar, cache), activation_backward(dev, lam, cache)
