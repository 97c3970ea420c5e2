"""The kinds of networks of phase_networks.py: how they are built and measured, and their theory.

chi is the factor by which J, the squared norm of the Jacobian by output, changes in a block: the
mean over the last blocks, geometric on images, of random networks and of the theory at the same
depth."""

import math
from typing import NamedTuple

import _critical_networks as finite
import numpy as np

from tinygrok.criticality.jacobian import Propagation
from tinygrok.criticality.meanfield import MeanField, averages
from tinygrok.models import vision

IMAGE = (32, 32, 3)
LAST = 4  # blocks that are measured, and averaged in the theory


# -- networks on images ----------------------------------------------------------------------------


class Images(NamedTuple):
    """Networks on images of independent Normal(0, 1) pixels.

    build    mu -> a chain of an input, blocks and a readout
    halves   stages of the chain a block: 1, or 2
    batch    images; BatchNorm needs many
    chi      (sw2, sb2, mu) -> the theory's chi of the last blocks, at infinite width; None: unknown
    """

    title: str
    build: object
    halves: int
    batch: int
    chi: object

    def measure(self, dev, mu, sw2, sb2, rngs):
        """chi of networks, one a generator of rngs; one probe an image."""
        stages = LAST * self.halves
        samples = []
        for rng in rngs:
            net = self.build(mu)
            weights = net.init(rng, math.sqrt(sw2), math.sqrt(sb2), first=1.0)
            weights |= net.init_buffers()
            w = {name: dev.to_device(a) for name, a in weights.items()}
            first, *blocks, _ = net.stages(dev, w)  # the last is the readout
            h, _ = first.forward(dev.to_device(rng.standard_normal((self.batch, *IMAGE))))
            run = Propagation(dev, blocks, h)
            samples.append(run.chi(rng, 1, len(blocks) - stages)[0])
        chi = np.mean(samples, axis=0)  # of every stage, before the logarithm
        return float(np.exp(self.halves * np.log(chi).mean()))

    def theory(self, mu, sw2, sb2):
        """chi over arrays (grid,) of sw2 and sb2: (len(sb2), len(sw2)), or None"""
        if self.chi is None:
            return None
        return self.chi(sw2[None, :], sb2[:, None], mu)


def geometric_mean(factors):
    """Of the last blocks' chi."""
    return np.exp(np.mean(np.log(factors[-LAST:]), axis=0))


def resnet_chi(sw2, sb2, mu, norm, n):
    """chi of the last blocks of a ResNet of n blocks a stage, ReLU, with a norm.

    Every convolution takes a norm's output, of variance 1, so its own output has the variance
    k = sw2 A + sb2, A = V(1), with BatchNorm A = V(1) - M(1)^2 and no sb2; of a block's two norms
    the first divides by K, the variance of x, the second by k of the convolution inside:

        chi = mu^2 + sw2^2 D(1)^2/(K k)        K <- mu^2 K + k

    The last stage starts behind a block whose shortcut is normalised, half its channels 0:
    K = mu^2/2 + k for LayerNorm, which takes all channels together; BatchNorm divides every channel
    by its own K, mu^2 + k or k, and 1/K above is their mean. There, of 8 x 8 pixels, a kernel's
    nine taps lie in the image by a share of (22/24)^2 in the mean, by which sw2 is smaller."""
    V, D, M2 = averages("relu")(1.0)
    sw2 = sw2 * (22 / 24) ** 2 + 0 * sb2
    k = sw2 * (V - M2) if norm == "batchnorm" else sw2 * V + sb2
    shortcuts = (1, 0) if norm == "batchnorm" else (1 / 2,)
    variances = [mu**2 * shortcut + k for shortcut in shortcuts]
    factors = []
    for _ in range(n - 1):
        inverse = np.mean([1 / K for K in variances], axis=0)
        factors.append(mu**2 + (sw2 * D) ** 2 * inverse / k)
        variances = [mu**2 * K + k for K in variances]
    return geometric_mean(factors)


def gelu_product(k, c):
    """<phi(u) phi(v)> of GELU phi, for u and v of variance k and covariance c:

    c/4 + [(c^2 + k^2 d^2)/(P d) + c arctan(c/d)]/(2 pi),  P = (1 + k)^2,  d^2 = P - c^2"""
    P = (1 + k) ** 2
    d2 = P - c * c
    d = np.sqrt(d2)
    bracket = (c * c + k * k * d2) / (P * d) + c * np.arctan(c / d)
    return c / 4 + bracket / (2 * np.pi)


def mixer_chi(sw2, sb2, mu, depth):
    """chi of the last blocks of an MLP-Mixer with GELU.

    Of the two layers of a half the first has outputs of variance kap = sw2 + sb2; LayerNorm divides
    by the variance S over channels:

        chi = mu^2 + sw2^2 D(kap)/S in both halves, a block has their product
        tokens:   S <- mu^2 S + sw2 (V(kap) - C(kap, sb2)),  what all channels share leaves S alone
        channels: S <- mu^2 S + sw2 V(kap) + sb2,            C(kap, c) = <phi phi> of covariance c

    Every token is divided by an S of its own, taken here as one. At mu < 1 tokens become alike and
    S differs among them: then <1/S> is above 1/<S>, and chi above this theory, up to twice."""
    kap = sw2 + sb2
    V, D, _ = averages("gelu")(kap)
    own = V - gelu_product(kap, sb2 + 0 * sw2)
    S = 1 + sb2
    factors = []
    for _ in range(depth):
        tokens = mu**2 + sw2**2 * D / S
        S = mu**2 * S + sw2 * own
        channels = mu**2 + sw2**2 * D / S
        S = mu**2 * S + sw2 * V + sb2
        factors.append(tokens * channels)
    return geometric_mean(factors)


def resnet_kind(title, norm, batch, n=6):
    def build(mu):
        return vision.resnet(IMAGE, 10, 6 * n + 2, 8, norm, mu=mu)

    def chi(sw2, sb2, mu):
        return resnet_chi(sw2, sb2, mu, norm, n)

    return Images(title, build, 1, batch, chi)


def mixer_kind(depth=16):
    def build(mu):
        return vision.mixer(IMAGE, 10, 4, 64, depth, (128, 128), mu=mu)

    def chi(sw2, sb2, mu):
        return mixer_chi(sw2, sb2, mu, depth)

    return Images("MLP-Mixer, GELU", build, 2, 2, chi)


def vit_kind(depth=10):
    def build(mu):
        return vision.vit(IMAGE, 10, 8, 64, depth, 4, mu=mu)

    return Images("ViT, ReLU", build, 2, 4, None)


# -- deep MLPs -------------------------------------------------------------------------------------


class Deep(NamedTuple):
    """Deep MLPs of an activation and a norm, measured as in critical_init.py."""

    activation: str
    norm: str
    width: int = 100
    depth: int = 20

    @property
    def title(self):
        places = {"none": "no norm", "pre": "LayerNorm before", "act": "LayerNorm after"}
        return f"{self.activation}, {places[self.norm]}"

    def case(self, mu, sw2, sb2):
        return MeanField(self.activation, float(sw2), float(sb2), mu, self.norm)

    def measure(self, dev, mu, sw2, sb2, rngs):
        """chi of networks, one a generator of rngs."""
        sizes = (self.width, self.depth, 4, 2)  # of batches and probes too
        return float(finite.measure_last(dev, self.case(mu, sw2, sb2), *sizes, rngs, LAST))

    def theory(self, mu, sw2, sb2):
        """chi over arrays (grid,) of sw2 and sb2: (len(sb2), len(sw2))"""
        maps = np.empty((len(sb2), len(sw2)))
        for i, j in np.ndindex(maps.shape):
            profile = finite.theory(self.case(mu, sw2[j], sb2[i]), self.depth)
            maps[i, j] = profile.chi[-LAST:].mean()
        return maps


IMAGES = {
    "resnet": resnet_kind("ResNet-38, LayerNorm", "layernorm", 2),
    "resnet_batchnorm": resnet_kind("ResNet-38, BatchNorm", "batchnorm", 32),
    "mixer": mixer_kind(),
    "vit": vit_kind(),
}
MLPS = [Deep(kind, norm) for kind in ("relu", "erf", "gelu") for norm in ("none", "pre", "act")]
