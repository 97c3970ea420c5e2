"""Networks beside the theory: profiles against depth, rates and exponents, deviations in errors."""

import math

import _critical_networks as finite
import numpy as np
import pytest

from tinygrok.criticality.meanfield import MeanField, critical_point


def test_profiles_of_the_theory():
    case = MeanField("relu", 1.5, 0.1)
    K, chi, J = finite.theory(case, 6)
    assert [len(x) for x in (K, chi, J)] == [7, 6, 7]
    assert pytest.approx(0.4) == K  # it starts at the fixed point
    assert pytest.approx(0.75) == chi
    assert pytest.approx(0.75 ** np.arange(6, -1, -1)) == J


def test_where_networks_start():
    """At K* of a half-stable point; inputs of variance 1 where the fixed point is 0 or anything."""
    sw2, sb2, K = critical_point("gelu")
    assert finite.start(MeanField("gelu", sw2, sb2)) == K
    assert finite.start(MeanField("erf", math.pi / 4)) == 1.0
    assert finite.start(MeanField("relu", 2.0)) == 1.0
    assert finite.start(MeanField("relu", 2.5, 0.1)) == 1.1
    batch = MeanField("relu", 1.0, 0.3, norm="batch")
    assert finite.start(batch) == batch.fixed_point()
    assert finite.shared_variance(batch) == 0.0


def test_rates_and_exponents():
    """J = exp(-l/xi) has the rate 1/xi, J ~ 1/l the exponent 1; means of networks are exact."""
    assert finite.decays(np.full((2, 10), math.exp(-0.3))) == pytest.approx(0.3)
    depth = 200
    layers = np.arange(1, depth + 1)
    power = finite.decays((layers / (layers + 1))[None])[0]
    assert power * (depth / 2) / math.log(2) == pytest.approx(1, abs=0.01)
    spread = np.array([[1.1] * 4, [0.9] * 4])
    assert finite.decays(spread).mean() == pytest.approx(0)


@pytest.mark.parametrize("norm", ["none", "pre", "batch"])
def test_networks_beside_the_theory(host_dev, norm):
    batch = 256 if norm == "batch" else 8
    case = MeanField("tanh", 1.5, 0.1, 0.5, norm)
    rngs = np.random.default_rng(0).spawn(6)
    found = finite.measure(host_dev, case, 128, 6, batch, 2, rngs)
    assert [x.shape for x in found] == [(6, 7), (6, 6), (6, 7)]
    table = finite.compare(case, found, 6)
    assert ("K^7" in table) == (norm != "batch")
    for name, (expected, mean, error, deviation) in table.items():
        assert mean == pytest.approx(expected + error * deviation), name
        assert abs(mean - expected) < 4 * error + 0.05 * abs(expected), name
    last = finite.measure_last(host_dev, case, 128, 6, batch, 2, rngs, 2)
    assert last == pytest.approx(found.chi[:, -2:].mean(), rel=0.1)
