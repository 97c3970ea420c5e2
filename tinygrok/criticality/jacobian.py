"""The averaged partial Jacobian norm (APJN) of any model that lists its stages.

    J^{l0,l} = |dh^l/dh^l0|^2 / (B N_l)        h^l: the B samples after l stages, N_l entries each

It is estimated with random cotangents in one backward pass. The Jacobian is that of the whole
batch, so BatchNorm's coupling of samples is in it; the division is by the size of the output. For v
uniform on the unit sphere of a sample's output, drawn for every sample alone,
E |v^T dh^l/dh^l0|^2 / B is J.
Source: Doshi, He, Gromov, arXiv 2111.12143.
"""

from collections.abc import Iterable

import numpy as np

from ..engine.device import Array, Device
from ..models.protocol import Stage
from .autoinit import sphere


class Propagation:
    """One forward pass of a batch through stages, kept for backward passes from any of them.

    stages   the model's `stages(dev, w)` (models.protocol.Stage), or some of them
    x        (B, ...) on the device, the input of the first stage
    kernels  (stages + 1,): mean square of the entries of x and of every stage's output

    >>> import numpy as np
    >>> from tinygrok.criticality.jacobian import Propagation
    >>> from tinygrok.engine.device import get_device
    >>> from tinygrok.models.vision import deep_mlp
    >>> dev = get_device("cpu", "float64")
    >>> rng = np.random.default_rng(0)
    >>> net = deep_mlp(64, 300, 4, 10, "relu")
    >>> weights = net.init(rng, sigma_w=2**0.5)
    >>> x = rng.standard_normal((8, 64))
    >>> run = Propagation(dev, net.stages(dev, weights)[:-1], x)
    >>> chi = run.chi(rng, probes=4).mean(axis=0)
    >>> round(float(chi[1:].mean()), 1)  # sigma_w^2 = 2 is critical; the first layer has no ReLU
    1.0
    """

    def __init__(self, dev: Device, stages: Iterable[Stage], x: Array):
        self.dev = dev
        self.stages = list(stages)
        self.shapes = [x.shape]
        self.caches = []
        kernels = [(x * x).mean()]
        for stage in self.stages:
            x, cache = stage.forward(x)
            self.caches.append(cache)
            self.shapes.append(x.shape)
            kernels.append((x * x).mean())
        self.kernels = np.array([float(k) for k in kernels])

    def apjn(self, rng, probes: int = 1, stop: int | None = None, start: int = 0) -> np.ndarray:
        """Estimates of J^{l0,stop} for l0 = start..stop: (probes, stop - start + 1).

        All of a row come from one backward pass, so they are correlated across l0. Cotangents are
        brought to unit length after every stage, so that an exploding J overflows only where
        float64 does.
        """
        stop = len(self.stages) if stop is None else stop
        J = np.ones((probes, stop - start + 1))
        for row in J:
            u = self.dev.to_device(sphere(rng, self.shapes[stop]))
            for k in range(stop - 1, start - 1, -1):
                u = self.stages[k].backward(u, self.caches[k])
                square = float((u * u).sum()) / len(u)
                row[k - start] = row[k - start + 1] * square
                u = u * max(square, 1e-30) ** -0.5
        return J

    def chi(self, rng: np.random.Generator, probes: int = 1, start: int = 0) -> np.ndarray:
        """Estimates of chi_J = J^{l,l+1} for the stages l from start on: (probes, stages - start).

        Every stage has cotangents of its own.
        """
        columns = []
        for k in range(start, len(self.stages)):
            pairs = self.apjn(rng, probes, stop=k + 1, start=k)  # J^{k,k+1}, J^{k+1,k+1} = 1
            columns.append(pairs[:, 0])
        return np.stack(columns, axis=1)


def mean_and_error(samples) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard error) over the first axis: networks, or probes of one network"""
    samples = np.asarray(samples)
    error = samples.std(axis=0, ddof=1) / len(samples) ** 0.5
    return samples.mean(axis=0), error
