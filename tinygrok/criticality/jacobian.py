"""The averaged partial Jacobian norm (APJN) of any model that lists its stages
(models.chain.Stage): estimated with random cotangents in one backward pass, or from the exact
Jacobian.

    J^{l0,l} = |dh^l/dh^l0|^2 / (B N_l)        h^l: the B samples after l stages, with N_l entries each

The Jacobian is that of the whole batch, so BatchNorm's coupling of samples is in it; the division
is by the size of the output. For v uniform on the unit sphere of a sample's output, drawn for every
sample alone, E |v^T dh^l/dh^l0|^2 / B is J.
Source: Doshi, He, Gromov, arXiv 2111.12143.
"""

import numpy as np

from ..engine.device import Array, Device
from .autoinit import sphere


class Propagation:
    """One forward pass of a batch x (B, ...) through stages, kept for backward passes from any of
    them.

    kernels (stages + 1,): mean square of the entries of x and of every stage's output
    """

    def __init__(self, dev: Device, stages, x: Array):
        self.dev, self.stages, self.shapes, self.caches = dev, list(stages), [x.shape], []
        kernels = [(x * x).mean()]
        for stage in self.stages:
            x, cache = stage.forward(x)
            self.caches.append(cache)
            self.shapes.append(x.shape)
            kernels.append((x * x).mean())
        self.kernels = np.array([float(k) for k in kernels])

    def apjn(
        self, rng: np.random.Generator, probes: int = 1, stop: int | None = None, start: int = 0
    ) -> np.ndarray:
        """(probes, stop - start + 1): estimates of J^{l0,stop} for l0 = start..stop, all from one
        backward pass a probe.

        A probe's estimates are correlated across l0. Cotangents are brought to unit length after
        every stage, so that an exploding J overflows only where float64 does.
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

    def chi(self, rng: np.random.Generator, probes: int = 1) -> np.ndarray:
        """(probes, stages): estimates of chi_J = J^{l,l+1}, with new cotangents for every stage."""
        return np.stack(
            [self.apjn(rng, probes, k + 1, k)[:, 0] for k in range(len(self.stages))], axis=1
        )

    def jacobian(self, start: int, stop: int) -> np.ndarray:
        """dh^stop/dh^start, (B N_stop, B N_start), one backward pass a row: for small widths."""
        rows = []
        for i in range(np.prod(self.shapes[stop], dtype=int)):
            u = np.zeros(self.shapes[stop])
            u.flat[i] = 1.0
            u = self.dev.to_device(u)
            for k in range(stop - 1, start - 1, -1):
                u = self.stages[k].backward(u, self.caches[k])
            rows.append(self.dev.to_host(u).reshape(-1))
        return np.stack(rows)

    def exact(self, start: int, stop: int) -> float:
        """J^{start,stop} of this network and batch, from the exact Jacobian."""
        J = self.jacobian(start, stop)
        return float((J * J).sum()) / len(J)


def mean_and_error(samples) -> tuple[np.ndarray, np.ndarray]:
    """(mean, standard error) over the first axis: networks, or probes of one network"""
    samples = np.asarray(samples)
    return samples.mean(axis=0), samples.std(axis=0, ddof=1) / len(samples) ** 0.5
