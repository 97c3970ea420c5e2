"""Jacobian norms between the submodules of a user's PyTorch module, and AutoInit for it.

    J = |dy/dh|^2 / (B N)        h, y: outputs of two submodules, y with N entries for each of B
                                 samples

as in jacobian.py and autoinit.py for this library's networks; here the gradients are PyTorch's,
which is imported when it is needed (the extra "oracle"). At J = 1 between all neighbours a network
is critical. The Jacobian is that of the whole batch: of a BatchNorm in training mode it holds the
coupling of samples. Running statistics, gradients and hooks of the module stay as they are.
Sources: Doshi, He, Gromov, arXiv 2111.12143 (J); He, Doshi, Gromov, arXiv 2206.13568 (AutoInit).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from ..engine.border import integer
from ..engine.errors import InputError, one_line
from ..engine.rng import generator
from .autoinit import sphere
from .jacobian import mean_and_error


def torch_apjn(module, batch, blocks, probes: int = 16, rng=None) -> tuple[np.ndarray, np.ndarray]:
    """(J, standard errors), n - 1 each: from every submodule's output to that of the next one.

    module   a torch.nn.Module, in the mode in which it is to be measured (train or eval)
    batch    the tensor that it takes
    blocks   n names of module.named_modules() in the order in which they run; "" is the module
    probes   backward passes, with a random unit vector v for every sample of y: J is the mean over
             them of sum_b |u_b|^2 / B, u = (dy/dh)^T v. The standard error is that of this mean, of
             the network and the batch as they are
    rng      a NumPy generator; that of seed 0 unless given

    To begin at the input, put a torch.nn.Identity before the network. Raises InputError where torch
    is missing or the module refuses the batch, for names and orders that it does not have, for a
    submodule that runs more than once, and for outputs that are no floating-point tensors.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> layers = [torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(400, 400)) for _ in range(4)]
    >>> net = torch.nn.Sequential(*layers)
    >>> J, error = torch_apjn(net, torch.randn(8, 400), ["0", "1", "2", "3"])
    >>> J.round(2)  # PyTorch's weights have the variance 1/(3N): J = 1/6
    array([0.17, 0.17, 0.17])
    """
    probes = integer(probes, "probes", 2)
    samples = _samples(module, batch, blocks, probes, rng or generator(0, "probes"))
    return mean_and_error(samples.detach().cpu().double().numpy())


def torch_autoinit(
    module, batch, blocks, steps: int = 100, lr: float = 0.1, probes: int = 2, rng=None
) -> np.ndarray:
    """Multiply weights in place until J from every submodule to the next one is near 1.

    Returns J (steps + 1, n - 1), before every step and at the end. Every weight, a parameter of two
    axes or more, of the submodules but the first gets a multiplier a, and with fresh probes in
    every step

        ln a <- ln a - lr a dL/da,  |change| <= 0.3,  L = 1/2 sum (ln J)^2

    as in tinygrok.autoinit: of k weights in series, lr < 1/(2 k), with norms between them 1/(8 k).
    What a norm divides out, no multiplier moves, and a residual block comes to 1 slowly, since only
    a = 0 gives it. Arguments and errors are those of torch_apjn; InputError also where nothing can
    be tuned, where PyTorch lacks a second derivative, and for a loss that is not finite.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> layers = [torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(100, 100)) for _ in range(3)]
    >>> net = torch.nn.Sequential(*layers)
    >>> J = torch_autoinit(net, torch.randn(32, 100), ["0", "1", "2"], steps=40)
    >>> J[[0, -1]].round(1)
    array([[0.3, 0.3],
           [1. , 1. ]])
    """
    blocks = list(blocks)
    probes = integer(probes, "probes", 1)
    rng = rng or generator(0, "probes")
    weights = {}  # a shared one counts once
    for part in list(_submodules(module, blocks).values())[1:]:
        weights |= {id(w): w for w in part.parameters() if w.ndim > 1 and w.requires_grad}
    if not weights:
        raise InputError(f"no weights to tune in {', '.join(blocks[1:])}")
    history = []
    for t in range(integer(steps, "steps", 0) + 1):
        J = _samples(module, batch, blocks, probes, rng, create_graph=t < steps).mean(dim=0)
        loss = 0.5 * (J.log() ** 2).sum()
        if not loss.isfinite():
            raise InputError(f"the Jacobian loss is {loss.item()} in step {t}: start elsewhere")
        history.append(J.detach().cpu().double().numpy())
        if t < steps:
            _tune(list(weights.values()), loss, lr)
    return np.stack(history)


def _tune(weights: list, loss, lr: float) -> None:
    """A step of torch_autoinit: w <- w exp(-lr a dL/da), a dL/da = <dL/dw, w>."""
    torch = _torch()
    with _refusing("no second derivative"):
        slopes = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        for w, slope in zip(weights, slopes, strict=True):
            step = -lr * (slope * w).sum()
            w *= step.clamp(-0.3, 0.3).exp()


def _samples(module, batch, blocks, probes: int, rng, create_graph=False):
    """(probes, n - 1) tensor: sum_b |u_b|^2 / B of every probe and pair of submodules."""
    torch = _torch()
    outputs = _outputs(module, batch, list(blocks))
    options = {"retain_graph": True, "create_graph": create_graph, "allow_unused": True}
    columns = []
    for (before, h), (after, y) in pairwise(outputs.items()):
        column = []
        for _ in range(probes):
            v = torch.as_tensor(sphere(rng, tuple(y.shape))).to(y)
            with _refusing(f"no gradient from {after!r} to {before!r}"):
                (u,) = torch.autograd.grad(y, h, v, **options)
            if u is None:
                raise InputError(f"{after!r} does not depend on {before!r}")
            column.append((u * u).sum() / len(y))
        columns.append(torch.stack(column))
    samples = torch.stack(columns, dim=1)
    if not samples.isfinite().all():
        raise InputError("the Jacobians are not finite: try other weights, or float64")
    return samples


def _outputs(module, batch, blocks: list[str]) -> dict:
    """{name: output} of the submodules in a forward pass, in the order in which they ran."""
    torch = _torch()
    submodules = _submodules(module, blocks)
    if not torch.is_tensor(batch):
        raise InputError(f"the batch must be a tensor, not a {type(batch).__name__}")
    found = {}

    def keep(name: str, _module, _inputs, y):
        """Keeps y; what goes on is a copy, which the next module may change in place."""
        if name in found:
            raise InputError(f"{name!r} runs more than once")
        if not torch.is_tensor(y) or not y.is_floating_point() or not y.ndim:
            raise InputError(f"the output of {name!r} is no array of floating-point numbers")
        found[name] = y if y.requires_grad else y.detach().requires_grad_()
        return found[name].clone()

    hooks = [part.register_forward_hook(partial(keep, name)) for name, part in submodules.items()]
    buffers = {name: x.clone() for name, x in module.named_buffers()}  # the pass may change them
    refusing = _refusing("the module refuses the batch")
    # PyTorch differentiates only this kind of attention twice.
    attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    try:
        with torch.inference_mode(False), torch.enable_grad(), attention, refusing:
            torch.func.functional_call(module, buffers, (batch,))
    finally:
        for hook in hooks:
            hook.remove()
    if list(found) != blocks:
        ran = ", ".join(found) or "none of them"
        raise InputError(f"the submodules must be named in the order in which they run: {ran}")
    return found


def _submodules(module, blocks: list[str]) -> dict:
    """{name: submodule} of the names."""
    if not isinstance(module, _torch().nn.Module):
        raise InputError(f"a torch.nn.Module is measured, not a {type(module).__name__}")
    known = dict(module.named_modules())
    for name in blocks:
        if name not in known:
            names = one_line(", ".join(filter(None, known)))
            raise InputError(f"unknown submodule {name!r}: choose {names}")
    if len(set(blocks)) < max(len(blocks), 2):
        raise InputError("two submodules or more are needed, each named once")
    return {name: known[name] for name in blocks}


def _torch() -> Any:
    """PyTorch, which only a measurement of its modules needs."""
    try:
        import torch
    except ImportError as error:
        raise InputError("PyTorch is not installed: pip install torch") from error
    return torch


@contextmanager
def _refusing(problem: str) -> Iterator[None]:
    """What PyTorch raises becomes an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{problem}: {one_line(error)}") from error
