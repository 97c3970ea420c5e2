"""Phase diagrams of networks on images: their theory against other forms of it, and networks."""

import _phase_kinds as kinds
import numpy as np
import phase_networks
import pytest
from test_jacobian import gelu_product

from tinygrok.audit.case import cpu_device
from tinygrok.criticality.meanfield import averages

POINT = np.array([2.0]), np.array([0.3])


@pytest.mark.parametrize(("k", "c"), [(1.0, 0.0), (2.3, 0.3), (0.5, 0.4)])
def test_the_product_of_two_gelus(k, c):
    assert kinds.gelu_product(k, c) == pytest.approx(gelu_product(k, c), rel=1e-6)
    M2 = averages("gelu")(k)[-1]
    assert kinds.gelu_product(k, 0.0) == pytest.approx(float(M2), rel=1e-12)


def test_a_resnet_without_biases_is_marginal():
    """LayerNorm, ReLU, sb2 = 0: chi = mu^2 + m^2/K and K* = m^2/(1 - mu^2) for sw2 = 2 m^2, so that
    chi = 1 at the end whatever sw2; with BatchNorm mu^2 + (1 - mu^2) (pi/(pi - 1))^2."""
    sw2 = np.array([0.5, 2.0, 4.0])
    for mu in (0.0, 0.5):
        chi = kinds.resnet_chi(sw2, 0.0, mu, "layernorm", 60)
        np.testing.assert_allclose(chi, 1.0, rtol=1e-9)
        chi = kinds.resnet_chi(sw2, 0.7, mu, "batchnorm", 60)
        limit = mu**2 + (1 - mu**2) * (np.pi / (np.pi - 1)) ** 2
        np.testing.assert_allclose(chi, limit, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mu", "tolerance"),
    [("resnet", 0.5, 0.08), ("resnet", 1.0, 0.03), ("mixer", 1.0, 0.02)],
)
def test_networks_follow_the_theory(name, mu, tolerance):
    kind = kinds.IMAGES[name]
    dev = cpu_device("float32")
    for sw2, sb2 in ((2.0, 0.0), (1.0, 0.2), (4.0, 1.0)):
        rngs = np.random.default_rng(0).spawn(6)
        measured = kind.measure(dev, mu, sw2, sb2, rngs)
        expected = kind.theory(mu, np.array([sw2]), np.array([sb2])).item()
        assert measured == pytest.approx(expected, rel=tolerance), (sw2, sb2)


@pytest.mark.slow
def test_why_a_mixer_is_above_its_theory():
    """At mu = 0 by <1/S><S> in each half, S the variance of a token over its channels."""
    kind, sw2, sb2 = kinds.IMAGES["mixer"], 1.0, 1.0
    dev, ratios = cpu_device("float32"), []
    for rng in np.random.default_rng(0).spawn(4):
        net = kind.build(0.0)
        w = net.init(rng, sw2**0.5, sb2**0.5, first=1.0) | net.init_buffers()
        x = dev.to_device(rng.standard_normal((2, *kinds.IMAGE)))
        spread = []
        for stage in net.stages(dev, {n: dev.to_device(a) for n, a in w.items()})[:-1]:
            x, _ = stage.forward(x)
            S = x.var(axis=-1)
            spread.append((1 / S).mean() * S.mean())
        ratios.append(np.prod(spread[-2 * kinds.LAST - 1 : -1]) ** (1 / kinds.LAST))
    measured = kind.measure(dev, 0.0, sw2, sb2, np.random.default_rng(1).spawn(4))
    theory = kind.theory(0.0, np.array([sw2]), np.array([sb2])).item()
    assert 1.8 < measured / theory < 2.3
    assert measured / theory == pytest.approx(np.mean(ratios), rel=0.12)


@pytest.mark.parametrize("kind", kinds.MLPS, ids=lambda kind: kind.title)
def test_deep_mlps_follow_the_theory(kind):
    kind = kind._replace(width=60, depth=6)
    rngs = np.random.default_rng(0).spawn(6)
    for mu in (0.5, 1.0):
        measured = kind.measure(cpu_device("float32"), mu, *(x.item() for x in POINT), rngs)
        assert measured == pytest.approx(kind.theory(mu, *POINT).item(), rel=0.12)


def test_what_is_said_of_a_map():
    """The share near 1, and how far from the theory, of which some networks have none."""
    maps = {("a", 0.5): np.array([[1.0, np.e]]), ("b", 1.0): np.array([[0.95, 1.05]])}
    expected = {("a", 0.5): (*POINT, np.array([[1.0, 1.0]]))}
    found = phase_networks.summary(maps, expected)
    assert found["a, mu 0.5"] == pytest.approx(
        {"smallest": 1.0, "largest": np.e, "critical": 0.5, "rms": 0.5**0.5}
    )
    assert found["b, mu 1"]["critical"] == 1.0
    assert found["b, mu 1"]["rms"] is None


def test_strengths_by_default():
    assert phase_networks.arguments([]).mu == [0.5, 0.9, 1.0]
    assert phase_networks.arguments(["--mlp"]).mu == [0.0, 0.5, 1.0]
    assert phase_networks.arguments(["--mlp", "--mu", "1"]).mu == [1.0]
