"""Signal propagation at infinite width: Gaussian averages, recursions, critical lines and points,
exponents."""

import math

import numpy as np
import pytest

from tinygrok.criticality.meanfield import KNOWN, MeanField, averages, critical_line, critical_point
from tinygrok.engine.errors import InputError
from tinygrok.models.vision import NORMS

PI = math.pi


def brute(f, K, n=1201):
    """<f(z)> for z ~ Normal(0, K), by a plain sum."""
    x = np.linspace(-9, 9, n)
    w = np.exp(-x * x / 2)
    return (f(math.sqrt(K) * x) * w).sum() / w.sum()


erf = np.vectorize(math.erf)
SMOOTH = {
    "erf": (erf, lambda z: 2 / math.sqrt(PI) * np.exp(-z * z)),
    "gelu": (
        lambda z: z * (1 + erf(z / math.sqrt(2))) / 2,
        lambda z: (1 + erf(z / math.sqrt(2))) / 2 + z * np.exp(-z * z / 2) / math.sqrt(2 * PI),
    ),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "identity": (lambda z: z, np.ones_like),
    "silu": (
        lambda z: z / (1 + np.exp(-z)),
        lambda z: (1 + np.exp(-z) * (1 + z)) / (1 + np.exp(-z)) ** 2,
    ),
}
KINKED = {
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0),
    "leaky_relu": (lambda z: np.where(z > 0, z, 0.01 * z), lambda z: np.where(z > 0, 1.0, 0.01)),
}


@pytest.mark.parametrize("K", [1.3, 0.4, 3.0])
@pytest.mark.parametrize("kind", [*SMOOTH, *KINKED])
def test_averages_against_plain_sums(kind, K):
    tol, n = (1e-10, 301) if kind in SMOOTH else (6e-3, 1201)  # a kink costs the sum its digits
    phi, slope = (SMOOTH | KINKED)[kind]
    expected = (
        brute(lambda z: phi(z) ** 2, K, n),
        brute(lambda z: slope(z) ** 2, K, n),
        brute(phi, K, n) ** 2,
    )
    assert averages(kind)(K) == pytest.approx(expected, rel=tol, abs=tol)


@pytest.mark.parametrize("kind", ["relu", "leaky_relu"])
def test_kinked_formulas_against_sampling(kind):
    z = math.sqrt(1.3) * np.random.default_rng(0).standard_normal(4_000_000)
    phi, slope = KINKED[kind]
    V, D, M2 = averages(kind)(1.3)
    for average, sample in ((V, phi(z) ** 2), (D, slope(z) ** 2), (math.sqrt(M2), phi(z))):
        assert abs(average - sample.mean()) < 4 * sample.std() / 2000


def test_closed_forms():
    K = np.array([0.05, 1.0, 7.0, 300.0])
    a = 1 + 2 * K
    expected = {
        "identity": (K, 1 + 0 * K, 0 * K),
        "relu": (K / 2, 0.5 + 0 * K, K / (2 * PI)),
        "leaky_relu": (K * 1.0001 / 2, 1.0001 / 2 + 0 * K, 0.99**2 * K / (2 * PI)),
        "erf": (2 / PI * np.arcsin(2 * K / a), 4 / PI / np.sqrt(1 + 4 * K), 0 * K),
        "gelu": (
            K / 4 + K / (2 * PI) * np.arcsin(K / (1 + K)) + K**2 / (PI * (1 + K) * np.sqrt(a)),
            1 / 4 + (np.arcsin(K / (1 + K)) + K * (3 + 5 * K) / ((1 + K) * a**1.5)) / (2 * PI),
            K**2 / (2 * PI * (1 + K)),
        ),
    }
    for kind, formulas in expected.items():
        for found, formula in zip(averages(kind)(K), formulas, strict=True):
            np.testing.assert_allclose(found, formula, rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "K", "V", "D"),
    [
        ("tanh", 0.5, 0.273676, 0.592426),
        ("tanh", 1, 0.394294, 0.464403),
        ("tanh", 2, 0.519976, 0.349508),
        ("tanh", 5, 0.668445, 0.230625),
        ("erf", 1, 0.464559, 0.569410),
        ("gelu", 1, 0.425221, 0.455851),
        ("silu", 1, 0.355776, 0.379482),
    ],
)
def test_moments(kind, K, V, D):
    K = float(K)
    assert averages(kind)(K)[:2] == pytest.approx((V, D), abs=6e-7)


def test_quadrature_agrees_with_closed_forms():
    """gelu_tanh is summed, GELU is in closed form, and they are close; power<k> is summed and has
    Gaussian moments."""
    K = np.array([0.3, 2.0])
    np.testing.assert_allclose(averages("gelu_tanh")(K), averages("gelu")(K), rtol=2e-3)
    np.testing.assert_allclose(averages("power3")(K)[0], 15 * K**3, rtol=1e-12)
    np.testing.assert_allclose(averages("square")(K), (3 * K**2, 4 * K, K**2), rtol=1e-12)
    np.testing.assert_allclose(averages("power3")(0.0)[0], 0.0)


@pytest.mark.parametrize("kind", ["erf", "tanh", "gelu", "relu", "silu"])
@pytest.mark.parametrize("norm", NORMS)
def test_susceptibilities_are_derivatives(kind, norm):
    net = MeanField(kind, 1.7, 0.2, 0.5, norm)
    for K in (0.4, 3.0):
        h = 1e-4 * K
        ahead, behind = net.step(K + h), net.step(K - h)
        chi_J, chi_K, chi_Delta = net.susceptibilities(K)
        assert chi_J == pytest.approx(net.step(K)[1], rel=1e-14)
        assert chi_K == pytest.approx((ahead[0] - behind[0]) / (2 * h), rel=1e-6, abs=1e-10)
        assert chi_Delta == pytest.approx((ahead[1] - behind[1]) / (2 * h), rel=1e-6, abs=1e-10)


def test_susceptibilities_by_the_kink_safe_identity():
    """chi_K = sw2 <phi^2 (z^2/K - 1)>/(2K) and chi_Delta = sw2 <phi'^2 (z^2/K - 1)>/(2K)"""
    x, K = np.linspace(-12, 12, 4001), 1.7
    w = np.exp(-x * x / 2) / np.exp(-x * x / 2).sum()
    f, df = SMOOTH["tanh"]
    z = math.sqrt(K) * x
    _, chi_K, chi_Delta = MeanField("tanh", 2.0).susceptibilities(K)
    assert chi_K == pytest.approx((w * f(z) ** 2 * (x * x - 1)).sum() / K, rel=1e-10)
    assert chi_Delta == pytest.approx((w * df(z) ** 2 * (x * x - 1)).sum() / K, rel=1e-10)


# -- critical points, lines, fixed points ----------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sw2", "sb2", "K", "zeta"),
    [
        ("identity", 1, 0, None, 0),
        ("relu", 2, 0, None, 0),
        ("leaky_relu", 2 / 1.0001, 0, None, 0),
        ("erf", PI / 4, 0, 0, 1),
        ("tanh", 1, 0, 0, 1),
        ("gelu", 1.983058, 0.172922, (3 + math.sqrt(17)) / 2, 0),
        ("silu", 1.988005, 0.555143, 14.320174, 0),
    ],
)
def test_critical_points_and_exponents(kind, sw2, sb2, K, zeta):
    found = critical_point(kind)
    assert found[:2] == pytest.approx((sw2, sb2), abs=6e-7)
    if K is not None:
        assert found[2] == pytest.approx(K, abs=6e-7)
    net = MeanField(kind, *found[:2])
    assert net.exponent(found[2] or 1.0) == pytest.approx(zeta, abs=1e-6)
    assert net.correlation_length(found[2] or 1.0) == math.inf
    scaled = critical_point(kind, mu=0.9)
    assert scaled == pytest.approx((0.19 * found[0], 0.19 * found[1], found[2]))
    assert MeanField(kind, *scaled[:2], 0.9).exponent(scaled[2] or 1.0) == pytest.approx(
        zeta, abs=1e-6
    )


def test_gelu_is_half_stable():
    sw2, sb2, K = critical_point("gelu")
    net, h = MeanField("gelu", sw2, sb2), 1e-3
    slope = (net.susceptibilities(K + h)[1] - net.susceptibilities(K - h)[1]) / (2 * h)
    assert slope / 2 == pytest.approx(-1.436e-4, rel=1e-3)
    assert net.susceptibilities(K)[2] == pytest.approx(9.334e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "K", "sw2", "sb2", "chi_K"),
    [
        ("erf", 0.5, 1.3604, 0.0466, 0.500),
        ("erf", 5, 3.5992, 2.3854, 0.091),
        ("tanh", 1, 2.1533, 0.1510, 0.391),
        ("gelu", 1, 2.1937, 0.0672, 1.067),
        ("gelu", 30, 1.9649, 0.5908, 0.983),
    ],
)
def test_critical_line(kind, K, sw2, sb2, chi_K):
    K = float(K)
    at = critical_line(kind, K)
    assert at == pytest.approx((sw2, sb2), abs=6e-5)
    chi = MeanField(kind, *at).susceptibilities(K)
    assert chi[0] == pytest.approx(1, abs=1e-14)
    assert chi[1] == pytest.approx(chi_K, abs=6e-4)
    with_residual = critical_line(kind, K, mu=0.6)
    k, chi = MeanField(kind, *with_residual, 0.6).step(K)
    assert (k, chi) == pytest.approx((K, 1.0), abs=1e-12)


@pytest.mark.parametrize("mu", [0.0, 0.8])
@pytest.mark.parametrize("norm", ["pre", "act", "post"])
@pytest.mark.parametrize("kind", ["relu", "erf", "gelu"])
def test_critical_lines_with_layernorm(kind, norm, mu):
    for K in (0.7, 2.0):
        sw2, sb2 = critical_line(kind, K, norm, mu)
        net = MeanField(kind, sw2, sb2, mu, norm)
        K = net.fixed_point()
        assert net.step(K)[1] == pytest.approx(1, abs=1e-9)
        assert net.correlation_length() == math.inf


def test_slopes_of_the_layernorm_lines():

    def slope(kind, norm="pre"):
        sw2, sb2 = critical_line(kind, 1.0, norm)
        return sb2 / sw2

    for kind, expected in (
        ("relu", 0),
        ("identity", 0),
        ("erf", 0.104851),
        ("tanh", 0.070108),
        ("gelu", 0.030629),
    ):
        assert slope(kind) == pytest.approx(expected, abs=6e-7)
    assert slope("relu", "act") == pytest.approx(1 / (PI - 1), rel=1e-12)


def test_correlation_lengths():
    """xi at sw2 = 2, sb2 = 0.05: LayerNorm on pre-activations keeps signals alive for longer than
    on activations."""
    for kind, pre, post in (("relu", 20.5, 2.79), ("erf", 6.6, 2.9), ("gelu", 80, 3.4)):
        assert MeanField(kind, 2, 0.05, norm="pre").correlation_length() == pytest.approx(
            pre, rel=0.01
        )
        assert MeanField(kind, 2, 0.05, norm="act").correlation_length() == pytest.approx(
            post, rel=0.015
        )
    assert MeanField("relu", 2, 1, norm="pre").correlation_length() == pytest.approx(1.4, abs=0.05)
    assert MeanField("relu", 2, 1, norm="act").correlation_length() == pytest.approx(45, rel=0.01)


def test_fixed_points():
    assert MeanField("relu", 1.5, 0.09).fixed_point() == pytest.approx(0.36, rel=1e-12)
    assert MeanField("relu", 2.5, 0.1).fixed_point() == math.inf
    assert MeanField("gelu", 2.0, 0.0).fixed_point() == 0.0
    assert MeanField("erf", PI / 4).fixed_point() == 0.0
    net = MeanField("tanh", 2.5, 0.05)
    K, _ = net.propagate(1.0, 200)
    assert net.fixed_point() == pytest.approx(K[-1], rel=1e-10)
    assert MeanField("relu", 1.7, norm="pre", mu=0.5).fixed_point() == pytest.approx(
        1.7 / 2 / 0.75, rel=1e-10
    )


def test_layernorm_with_full_residual_is_critical_everywhere():
    for kind, sw2, sb2, rho in (
        ("relu", 2, 0, 1),
        ("relu", 0.3, 0, 1),
        ("relu", 1, 0.1, 0.8333),
        ("relu", 1, 1, 0.3333),
        ("erf", 2, 0, 1.2257),
        ("gelu", 2, 0, 1.0720),
        ("tanh", 2, 0, 1.1778),
        ("identity", 3, 0, 1),
    ):
        net = MeanField(kind, sw2, sb2, 1.0, "pre")
        assert -net.exponent() == pytest.approx(rho, abs=6e-5)
        assert net.fixed_point() == math.inf
    assert -MeanField("relu", 2, 0, 1.0, "act").exponent() == pytest.approx(PI / (PI - 1), abs=1e-6)
    for norm in ("none", "act"):
        assert MeanField("erf", 1, 0, 1.0, norm).exponent() == -math.inf  # stretched exponential
    assert math.isnan(MeanField("relu", 1, 0.1, 1.0, "post").exponent())
    for sw2 in (1.5, 1.9995, 2.0005):
        assert math.isnan(MeanField("relu", sw2, 0.1).exponent())
        assert math.isnan(MeanField("relu", sw2, 0.0).exponent())


def test_stretched_exponential():
    """erf, mu = 1, no norm: ln J ~ sqrt(l/lambda), lambda = pi^2 (sw2 + sb2)/(16 sw2^2)"""
    for sw2, sb2 in ((1.0, 0.0), (2.0, 0.5)):
        net = MeanField("erf", sw2, sb2, 1.0)
        K, chi = net.propagate(1.0, 40_000)
        log_J, half = np.cumsum(np.log(chi)), 20_000
        slope = (log_J[-1] - log_J[half - 1]) / (math.sqrt(40_000) - math.sqrt(half))
        assert slope == pytest.approx(4 * sw2 / (PI * math.sqrt(sw2 + sb2)), rel=0.003)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "R"), [("relu", PI / (PI - 1)), ("gelu", 1.3188), ("silu", 1.2121), ("erf", 1.2257)]
)
def test_batchnorm(kind, R):
    for sw2, sb2 in ((1.0, 0.0), (2.5, 0.7)):
        for mu in (0.0, 0.5, 0.9):
            net = MeanField(kind, sw2, sb2, mu, "batch")
            assert net.step(net.fixed_point())[1] == pytest.approx(
                mu**2 + (1 - mu**2) * R, abs=5e-5
            )
        assert -MeanField(kind, sw2, sb2, 1.0, "batch").exponent() == pytest.approx(R, abs=5e-5)


# -- recursions: the theory columns of the table ---------------------------------------------------

LINE = critical_line("erf", 1.0)
RECURSIONS = [
    ("relu", 2, 0, 0, "none", (1, 1, 1), (1, 1, 1)),
    ("relu", 1.5, 0.09, 0, "none", (0.512, 0.362, 0.360), (0.237, 0.00317, 5.66e-7)),
    ("erf", PI / 4, 0, 0, "none", (0.0967, 0.0251, 0.0100), (0.135, 0.0365, 0.0148)),
    ("erf", *LINE, 0, "none", (1, 1, 1), (1, 1, 1)),
    ("tanh", 1, 0, 0, "none", (0.1034, 0.0259, 0.0102), (0.1375, 0.0360, 0.0143)),
    ("tanh", 2.5, 0.05, 0, "none", (1.06, 1.06, 1.06), (1.95, 12.79, 549)),
    ("gelu", 1.408211**2, 0.415839**2, 0, "none", (1.08, 1.25, 1.47), (0.616, 0.180, 0.0263)),
    ("relu", 1.69, 0, 0, "pre", (0.845,) * 3, (0.845,) * 3),
    ("relu", 1.69, 0.25, 0, "pre", (1.095,) * 3, (0.2997, 0.0061, 2.58e-6)),
    ("erf", 1, 0.10485, 0, "pre", (0.569,) * 3, (0.569,) * 3),
    ("gelu", 1, 0.03063, 0, "pre", (0.456,) * 3, (0.456,) * 3),
    ("relu", 1, 1 / (PI - 1), 0, "act", (1.467,) * 3, (1.467,) * 3),
    ("relu", 1, 0, 0, "act", (1, 1, 1), (6.79, 2129, 2.09e8)),
    ("erf", 1, 0, 1, "none", (3.89, 15.6, 42.0), (6.14, 119, 3817)),
    ("relu", 2 * 0.19, 0, 0.9, "none", (1, 1, 1), (1, 1, 1)),
    ("relu", 1.96, 0.09, 1, "pre", (6.35, 22.4, 54.5), (5.60, 17.8, 40.3)),
    ("erf", 1, 0.09, 1, "pre", (3.77, 12.1, 28.7), (3.89, 12.84, 31.2)),
    ("erf", 1, 0.01, 0.9, "pre", (1.98, 2.48, 2.50), (2.62, 5.95, 18.4)),
    ("relu", 1.44, 0.09, 1, "post", (1, 1, 1), (0.775, 0.361, 0.078)),
]


@pytest.mark.parametrize(
    "case", RECURSIONS, ids=lambda c: f"{c[0]}-{c[4]}-{c[1]:.3g}-{c[2]:.3g}-{c[3]}"
)
def test_recursions(case):
    kind, sw2, sb2, mu, norm, kernels, jacobians = case
    K, chi = MeanField(kind, sw2, sb2, mu, norm).propagate(1.0, 50)
    J = np.cumprod(chi)
    assert K[[5, 20, 50]] == pytest.approx(kernels, rel=6e-3)
    assert J[[4, 19, 49]] == pytest.approx(jacobians, rel=9e-3)


def test_local_exponents():
    """-d ln J/d ln l over [l/2, l], as the recursion has it at finite depth"""
    for kind, at in (("erf", (0.920, 0.990, 0.996)), ("tanh", (0.946, 1.006, 1.007))):
        log_J = np.cumsum(np.log(MeanField(kind, *critical_point(kind)[:2]).propagate(1.0, 100)[1]))
        for depth, zeta in zip((10, 50, 100), at, strict=True):
            assert (log_J[depth // 2 - 1] - log_J[depth - 1]) / math.log(2) == pytest.approx(
                zeta, abs=0.02
            )


def test_phase_diagram_arrays():
    """Arrays of sw2, sb2 give what one network at a time gives."""
    sw2, sb2 = np.array([0.5, 1.0, 3.0]), np.array([[0.0], [0.5]])
    for norm in NORMS:
        K, chi = MeanField("erf", sw2, sb2, 0.9, norm).propagate(1.0, 6)
        assert K.shape == (7, 2, 3)
        assert chi.shape == (6, 2, 3)
        one = MeanField("erf", 3.0, 0.5, 0.9, norm).propagate(1.0, 6)
        np.testing.assert_allclose(K[:, 1, 2], one[0], rtol=1e-12)
        np.testing.assert_allclose(chi[:, 1, 2], one[1], rtol=1e-12)


def test_refusals():
    with pytest.raises(InputError, match="norm"):
        MeanField("relu", 1, norm="groupnorm")
    with pytest.raises(InputError, match="unknown activation"):
        MeanField("mish", 1)
    with pytest.raises(InputError, match="no critical line"):
        critical_line("relu", 1.0, "batch")


def test_closed_forms_cover_the_named_activations():
    assert {"identity", "relu", "leaky_relu", "erf", "gelu"} <= set(KNOWN)
