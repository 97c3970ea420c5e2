"""Weights written down: exactness over every input, the predicted noise, refusals, and what
training finds."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinygrok.analytic import trained, verify
from tinygrok.analytic.addition import (
    AnalyticError,
    addition_weights,
    designed_waves,
    equal_phases,
    exact_phases,
    group_size,
    lattice_phases,
    noise_constant,
    random_width,
    render,
)
from tinygrok.analytic.multiplication import multiplication_weights, zero_neurons
from tinygrok.analytic.polynomial import PolynomialError, PolynomialNetwork, parse
from tinygrok.engine.optim import SGD, AdamW
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.probes.fourier import neuron_ipr
from tinygrok.tasks.modular import (
    TaskError,
    addition,
    discrete_log,
    division,
    multiplication,
    polynomial,
    product,
    separable,
)
from tinygrok.training.tables import Evaluation, Training

check = verify.verify
EXACT = 1e-28


def logits(network, task, dev):
    return dev.to_host(verify.evaluator(dev, network)(task.inputs(np.arange(task.size))))


# -- addition --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("terms", "width"), [(1, 23), (2, 67), (3, 177), (4, 441)])
def test_addition_is_one_hot_exact(terms, width):
    task = addition(23, (1,) * terms)
    weights = addition_weights(task)
    assert weights["W"].shape == (width, 23)
    assert weights["U"].shape == (terms, 23, width)
    v = check(weights, task)
    assert v.accuracy == 1
    assert v.whole
    assert v.inputs == 23**terms
    assert v.mse < EXACT
    assert abs(v.min_margin - 1) < 1e-12
    assert v.noise < 1e-12
    assert abs(v.signal - 22 / 23) < 1e-12


@pytest.mark.parametrize(("terms", "width"), [(1, 2), (2, 6), (3, 16), (4, 40)])
def test_one_frequency_is_enough(terms, width):
    task = addition(23, (1,) * terms)
    v = check(addition_weights(task, width), task)
    assert v.accuracy == 1
    assert width == group_size(terms)
    assert abs(v.min_margin - 2 / 23 * (1 - math.cos(2 * math.pi / 23))) < 1e-12


@pytest.mark.parametrize(
    ("p", "terms", "coefficients"),
    [(97, 2, (1, 1)), (97, 2, (5, -3)), (31, 3, (2, 5, 7)), (12, 3, (1, 11, 5))],
)
def test_addition_with_coefficients(p, terms, coefficients):
    task = addition(p, coefficients)
    v = check(addition_weights(task), task)
    assert v.accuracy == 1
    assert v.mse < EXACT


def test_margin_of_several_frequencies():
    task = addition(23)
    for count in (2, 5):
        v, d, f = (
            check(addition_weights(task, 6 * count), task),
            np.arange(1, 23)[:, None],
            np.arange(1, count + 1),
        )
        assert (
            abs(v.min_margin - (2 / 23 * (1 - np.cos(2 * np.pi * f * d / 23)).sum(axis=1)).min())
            < 1e-12
        )


@pytest.mark.parametrize("terms", [2, 3, 4])
def test_lattice_phases_are_exact_too(terms):
    task = addition(11, (1,) * terms)
    v = check(addition_weights(task, phases="lattice"), task)
    assert v.accuracy == 1
    assert v.mse < EXACT
    assert len(lattice_phases(terms)) >= group_size(terms)


def test_equal_phases_have_a_margin_that_depends_on_the_input():
    task = addition(97)
    v = check(addition_weights(task, 3, "equal"), task)
    assert v.accuracy == 1
    assert 2e-8 < v.min_margin < 2.5e-8
    v = check(addition_weights(task, phases="equal"), task)
    assert v.accuracy == 1
    assert abs(v.min_margin - 0.5) < 1e-9
    assert v.noise > 0.05


@pytest.mark.parametrize("h", ["identity", "cube", "square"])
def test_any_function_of_a_sum(h):
    n = np.arange(23)
    task = separable(23, [4 * n, n**2], {"identity": n, "cube": n**3, "square": n**2}[h])
    v = check(addition_weights(task), task)
    assert v.accuracy == 1
    assert v.mse < EXACT


def test_predictions():
    """Noise per neuron, and the width at which random phases make no error."""
    assert [round(noise_constant(s), 3) for s in (1, 2, 3, 4)] == [0.5, 4.0, 25.333, 164.535]
    assert [[random_width(p, s) for p in (11, 23, 31, 97)] for s in (2, 3)] == [
        [79, 113, 127, 179],
        [728, 1017, 1134, 1583],
    ]


@pytest.mark.parametrize(
    ("p", "terms", "width", "low", "high"), [(97, 2, 500, 3.5, 4.6), (23, 3, 1000, 23, 28)]
)
def test_random_phases(p, terms, width, low, high):
    task = addition(p, (1,) * terms)
    v = check(addition_weights(task, width, "random", generator(0, "init")), task)
    assert v.accuracy == 1
    assert low < v.mse * width < high
    assert abs(v.signal / v.noise / math.sqrt(width / noise_constant(terms)) - 1) < 0.1


@pytest.mark.parametrize(("p", "terms", "width"), [(23, 2, 70), (23, 3, 111)])
def test_the_terms_account_for_the_whole_error(p, terms, width):
    """MSE = sum of rms^2 of the cross terms + the error of signal and constant, which only count
    frequencies."""
    task = addition(p, (1,) * terms)
    weights = addition_weights(task, width, "random", generator(1, "init"))
    v = check(weights, task)
    fit_ = trained.fit_waves(weights, task.circle)
    assert sum(t.words for t in v.terms) == (2 * terms) ** terms
    amplitude = fit_.amplitude[0, 0] ** (terms + 1) * math.factorial(terms) / 2**terms
    signal = amplitude * np.bincount(fit_.frequency, minlength=p // 2 + 1)[1:]
    h = sum(weights["U"][s, 0][fit_.frequency == 0] for s in range(terms)) ** terms
    constant = h @ weights["W"][fit_.frequency == 0, 0]
    expected = v.noise**2 + ((signal - 2 / p) ** 2).sum() / 2 + (constant - 1 / p) ** 2
    assert abs(v.mse - expected) < 1e-12
    assert abs(v.signal - signal.sum()) < 1e-12


def test_exact_phases_cancel_every_term_but_one():
    for terms, design in (
        (2, exact_phases),
        (3, exact_phases),
        (4, exact_phases),
        (3, lattice_phases),
    ):
        task = addition(11, (1,) * terms)
        first, *rest = verify.cross_terms(
            addition_weights(
                task, len(design(terms)), "exact" if design is exact_phases else "lattice"
            ),
            task.circle,
        )
        assert first.m == (1,) * terms
        assert first.words == math.factorial(terms)
        assert rest[0].rms < 1e-14 < first.rms
    _, second, *_ = verify.cross_terms(
        addition_weights(addition(11), 3, "equal"), addition(11).circle
    )
    assert second.rms > 1e-2
    assert len(equal_phases(2)) == 3


# -- multiplication --------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [2, 3, 23, 97])
def test_discrete_logarithm(p):
    log = discrete_log(p)
    assert log[0] == -1
    assert sorted(log[1:]) == list(range(p - 1))
    x = np.arange(1, p)
    assert ((log[x][:, None] + log[x] - log[x[:, None] * x % p]) % (p - 1) == 0).all()


@pytest.mark.parametrize("exponents", [(1, 1), (2, 3), (4, 1), (22, 44)])
def test_multiplication_is_one_hot_exact(exponents):
    task = multiplication(23, exponents)
    weights = multiplication_weights(task)
    v = check(weights, task)
    assert weights["W"].shape == (74, 23)
    assert v.accuracy == 1
    assert v.mse < EXACT


@pytest.mark.parametrize(
    ("p", "exponents", "width"),
    [(97, (1, 1), 296), (11, (1, 1, 1), 96 + 7), (13, (1, 3, 2, 4), 280 + 15), (11, (3,), 13)],
)
def test_many_factors_and_powers(p, exponents, width):
    task = multiplication(p, exponents)
    weights = multiplication_weights(task)
    v = check(weights, task)
    assert len(weights["W"]) == width
    assert v.accuracy == 1
    assert v.mse < EXACT
    assert v.inputs == p ** len(exponents)


def test_any_function_of_a_product_and_division():
    n = np.arange(13)
    task = product(
        13, [n + 1, n**2], (n**3 + 5) % 13
    )  # zero factors at n_1 = 12 and n_2 = 0, zero answers 5
    v = check(multiplication_weights(task), task)
    assert v.accuracy == 1
    assert v.mse < EXACT
    v = check(multiplication_weights(multiplication(13, (1, 11))), division(13))
    assert v.accuracy == 1
    assert v.inputs == 13 * 12
    assert v.mse < EXACT


def test_zero_neurons():
    forms, readout = zero_neurons(2)
    assert forms.tolist() == [[1, 1], [1, -1]]
    assert np.allclose(readout, [0.25, 0.75])


def test_random_multiplication_and_the_printed_exponent():
    """Eq. 6 as printed, with (2/(N-1))^(-1/3), drowns the zero neuron: every input with a zero is
    wrong."""
    task = multiplication(97)
    weights = multiplication_weights(task, 500, "random")
    assert check(weights, task).accuracy == 1
    scale = (2 / 499) ** (-2 / 3)
    weights["U"][:, :, 1:] *= scale
    weights["W"][1:] *= scale
    v = check(weights, task)
    assert abs((1 - v.accuracy) * 97**2 / 193 - 1) < 0.05  # 2 p - 1 = 193 inputs with a zero


# -- polynomials -----------------------------------------------------------------------------------

PAPER = "2*n1^4*n2 + n1^2*n2^2 + 3*n1*n2^3"


@pytest.mark.slow
def test_polynomial_of_the_paper():
    """Appendix B: MSE 0.00767 with N_1 = 500, N_2 = 2000, which are logits of 3/4 the stated
    normalisation."""
    net = PolynomialNetwork(97, parse(PAPER), "random", (500, 2000))
    v = check(net, net.task)
    assert v.accuracy == 1
    assert abs(v.mse * 2000 / noise_constant(3) - 1) < 0.1
    assert 0.0072 < v.mse * 9 / 16 + 1 / 16 / 97 < 0.0082


@pytest.mark.parametrize("beta", [100.0, None])
@pytest.mark.parametrize(
    ("p", "text", "widths"),
    [
        (97, PAPER, (296, 769)),
        (23, PAPER, (74, 177)),
        (11, "(4*n1 + n2^2)^3 - n1*n2 + 5", None),
        (7, "n1*n2*n3 + n3^6 - 2*n3", None),
    ],
)
def test_polynomial_with_exact_experts(p, text, widths, beta):
    net = PolynomialNetwork(p, parse(text), beta=beta)
    v = check(net, net.task)
    assert v.accuracy == 1
    assert v.mse < EXACT
    assert v.inputs == net.task.size
    assert widths is None or (len(net.experts[0][1]["W"]), len(net.top["W"])) == widths


def test_a_soft_step_only_scales_exact_logits():
    net = PolynomialNetwork(23, parse(PAPER), beta=1.0)
    assert check(net, net.task).accuracy == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("n1", lambda a, b: a),
        ("-n1 + 2*n2^0 - (n1 - n2)^3*2", lambda a, b: -a + 2 - 2 * (a - b) ** 3),
        ("2^3 * (n1 + 1)*(n2 + 1) - 8", lambda a, b: 8 * (a + 1) * (b + 1) - 8),
        (" ( ( n1 ) ) ^ 12 * n2 ^ 1000", lambda a, b: a**12 * b**1000),
    ],
)
def test_parser(text, value):
    monomials = parse(text)
    task = polynomial(13, monomials)
    table = task.table().reshape(13, -1)
    assert all(table[a, b] == value(a, b) % 13 for a in range(13) for b in range(table.shape[1]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        "n1 + x",
        "n10",
        "n0",
        "n1 n2",
        "2n1",
        "n1^^2",
        "n1^n2",
        "n1^-1",
        "n1**2",
        "n1/2",
        "n1.real",
        "(n1",
        "n1)",
        "n1 +",
        "__import__('os').system('ls')",
        "(n1 + n2)^101",
        "(n1 + n2 + n3 + n4)^30",
        "n1 + ²",
        "(" * 5000,
        "n1^" + "9" * 5000,
    ],
)
def test_parser_refuses(text):
    with pytest.raises(PolynomialError) as error:
        parse(text)
    assert "\n" not in str(error.value)


# -- refusals, devices, samples --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: multiplication(12), "12 is not prime"),
        (lambda: PolynomialNetwork(12, parse("n1*n2")), "12 is not prime"),
        (lambda: addition_weights(addition(97, (1,) * 14)), "too many"),
        (lambda: addition_weights(addition(97, (1,) * 60)), "at most 20"),
        (lambda: addition_weights(addition(97, (1,) * 9), 10**9, "random"), "too many"),
        (lambda: addition_weights(addition(97), 5), "too small"),
        (lambda: addition_weights(addition(97), 7), "does not fit"),
        (lambda: addition_weights(addition(97), 294), "does not fit"),
        (lambda: multiplication_weights(multiplication(97), 7), "too small"),
        (lambda: multiplication_weights(multiplication(97), 1, "random"), "too small"),
        (lambda: addition_weights(multiplication(97)), "not a sum"),
        (lambda: multiplication_weights(addition(97)), "not a product"),
        (lambda: addition_weights(polynomial(97, {(1, 1): 1})), "not a sum"),
        (lambda: addition_weights(addition(97), phases="magic"), "unknown phases"),
        (lambda: addition_weights(addition(97, (1, 1, 1)), phases="equal"), "2 terms"),
        (lambda: addition_weights(addition(97, (1,) * 5), phases="lattice"), "2, 3 and 4"),
        (lambda: PolynomialNetwork(7, parse("7*n1 + 3")), "constant mod 7"),
    ],
)
def test_refusals(build, says):
    with pytest.raises((AnalyticError, TaskError), match=says) as error:
        build()
    assert "\n" not in str(error.value)


def test_every_device_computes_the_same(dev):
    task = addition(11, (1, 2, 3))
    v = check(addition_weights(task, 16), task, dev)
    assert v.accuracy == 1
    assert abs(v.min_margin - 2 / 11 * (1 - math.cos(2 * math.pi / 11))) < 1e-5
    net = PolynomialNetwork(7, parse("n1*n2 + 3*n1^2"))
    v = check(net, net.task, dev)
    assert v.accuracy == 1
    assert v.mse < 1e-10


def test_verify_against_plain_numpy(host_dev):
    task = addition(23)
    weights = addition_weights(task, 30, "random")
    z, y = logits(weights, task, host_dev), task.table().ravel()
    v = check(weights, task)
    right = z[np.arange(529), y].copy()
    assert abs(v.mse - ((z - np.eye(23)[y]) ** 2).mean()) < 1e-14
    z[np.arange(529), y] = -np.inf
    margin = right - z.max(axis=1)
    assert v.accuracy == (margin > 0).mean() < 1
    assert v.min_margin == margin.min()
    assert abs(v.mean_margin - margin.mean()) < 1e-14
    assert v.at == tuple(task.inputs(margin.argmin()))


def test_large_tables_are_sampled_and_say_so():
    task = addition(23, (1,) * 5)
    v = check(addition_weights(task, 96), task, limit=10**9)
    assert v.accuracy == 1
    assert v.inputs == verify.SAMPLE
    assert not v.whole
    assert "a random sample" in str(v)


def test_float32_keeps_the_margin_of_one_frequency():
    task, dev = addition(97), verify.get_device("cpu", "float32")
    v = check(addition_weights(task, 6), task, dev)
    assert v.accuracy == 1
    assert abs(v.min_margin - 4.32e-5) < 1e-7


def test_exact_weights_are_a_stationary_point(host_dev):
    """They load into the parameters that training uses; the gradient of the MSE is 0 there, and
    plain descent stays."""
    task = addition(11)
    weights = addition_weights(task)
    net = verify.two_layer(weights)
    params, grads = Arena(host_dev, net.shapes), Arena(host_dev, net.shapes)
    params.load(weights)
    numbers = np.arange(task.size)
    data = [(task.inputs(numbers), task.labels(task.inputs(numbers)))]
    run = Training(
        host_dev,
        net,
        SGD(host_dev, params, grads, lr=1.0),
        data,
        Evaluation.of_task(task, train=numbers),
        0,
    )
    assert run.step() < EXACT
    assert np.abs(grads.flat).max() < 1e-14


# -- trained networks ------------------------------------------------------------------------------


def train(task, width, steps, seed=0, lr=0.005, betas=(0.9, 0.999)):
    """The paper's setting: MSE, decoupled weight decay 5, half of the table, full batches."""
    dev = verify.get_device("cpu", "float32")
    parts = task.split(0.5, generator(seed, "split"))
    net = verify.TwoLayerNet(task.p, width)
    params, grads = Arena(dev, net.shapes), Arena(dev, net.shapes)
    params.load(net.init(generator(seed, "init")))
    optimizer = AdamW(dev, params, grads, lr, betas, weight_decay=5.0)
    data = [(task.inputs(parts[0]), task.labels(task.inputs(parts[0])))]
    run = Training(
        dev, net, optimizer, data, Evaluation.of_task(task, train=parts[0], test=parts[1]), seed
    )
    run.fit(steps, log_every=steps)
    return run.params.to_host(), run.history["test_accuracy"][-1], parts


def test_the_fit_of_written_weights_is_perfect():
    n = np.arange(23)
    for task, build in (
        (addition(23, (3, 5)), addition_weights),
        (separable(23, [4 * n, n**2], n**3), addition_weights),
        (multiplication(23, (1, 3)), multiplication_weights),
        (separable(23, [2 * n, 3 * n], n**2), addition_weights),
        (separable(23, [2 * n, 3 * n], n**4), addition_weights),
    ):
        weights = build(task, 150, "random", generator(0, "init"))
        fit_ = trained.fit_waves(weights, task.circle)
        on = fit_.share > 0.5  # all but the zero neuron
        assert on.sum() >= 149
        assert np.allclose(fit_.share[on], 1)
        assert fit_.common[on].mean() > 0.9
        told = np.isfinite(fit_.residual)
        if (
            task.circle.answers == np.roll(task.circle.answers[::-1], 1)
        ).all():  # h(t) = h(-t) hides the phases
            assert not told.any()
            assert verify.cross_terms(weights, task.circle) == []
        else:
            assert told.sum() > 130
            assert np.abs(fit_.residual[told]).max() < 1e-6
        for name, x in trained.idealise(weights, task.circle).items():
            np.testing.assert_allclose(x, weights[name], atol=1e-9)


def test_the_fit_recovers_phases():
    task = addition(23, (3, 5))
    waves = designed_waves(23, np.arange(1, 12), exact_phases(2) + 0.2)
    weights = render(task.circle, 23, waves)
    fit_ = trained.fit_waves(weights, task.circle)
    assert (fit_.frequency == waves.frequency).all()
    assert np.allclose(fit_.amplitude, waves.amplitude)
    assert np.allclose(np.exp(1j * fit_.phase[:-1]), np.exp(1j * waves.phase.T))
    weights["W"] = render(task.circle, 23, waves._replace(phase=waves.phase + 0.15))[
        "W"
    ]  # read-out phases off by 0.3
    assert np.allclose(trained.fit_waves(weights, task.circle).residual, 0.3)
    kept = trained.idealise(weights, task.circle)
    assert np.allclose(kept["W"], weights["W"])
    assert np.allclose(kept["U"], weights["U"])


@pytest.mark.slow
def test_trained_multiplication_is_the_written_solution():
    """Section 8: p = 97, N = 500; log-Fourier IPR, phases, share of the weights explained before
    and after."""
    task = multiplication(97)
    weights, accuracy, _ = train(task, 500, 100)
    order = task.circle.answers
    assert accuracy == 1
    assert np.nanmean(neuron_ipr(weights, order)) > 0.6
    assert np.nanmean(neuron_ipr(weights)) < 0.06
    after = trained.fit_waves(weights, task.circle)
    before = trained.fit_waves(verify.TwoLayerNet(97, 500).init(generator(0, "init")), task.circle)
    assert before.total < 0.15
    assert after.total > 0.75
    assert after.common.mean() > 0.7
    assert np.sqrt(np.nanmean(after.residual[after.share > 0.8] ** 2)) < 0.2
    assert check(trained.idealise(weights, task.circle), task).accuracy > 0.99
    untrained = verify.TwoLayerNet(97, 500).init(generator(0, "init"))
    assert check(trained.idealise(untrained, task.circle), task).accuracy < 0.05, (
        "the fit must not write the solution"
    )


def test_separability_certificate():
    n = np.arange(23)
    sums = separable(23, [4 * n, n**2], n**3).table()
    assert not trained.excluded(sums, "add")
    assert trained.excluded((sums + n[:, None] * n) % 23, "add")
    assert trained.excluded((sums + n[:, None] * n) % 23, "multiply")
    times = multiplication(23, (2, 3)).table()
    assert trained.excluded(multiplication(23).table(), "add")
    assert not trained.excluded(times, "multiply")
    assert trained.excluded(addition(23).table(), "multiply")


def test_siblings_and_majority():
    table = polynomial(31, parse("(5*n1^3 + 2*n2^4)^2 - n2")).table()
    train_, test = (np.arange(31 * 31)[i::2] for i in (0, 1))
    count = trained.siblings(table, train_, test)
    rows = [
        [x for x in range(31) if (table[x] == table[a]).all()] for a in range(31)
    ]  # columns are distinct
    for number, found in list(zip(test, count, strict=True))[::37]:
        a, b = divmod(int(number), 31)
        assert found == sum((x * 31 + b) % 2 == 0 for x in rows[a])
        assert len(rows[a]) == (3 if a else 1)
    assert trained.majority_share(np.array([0, 1, 1, 4])) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--coefficients", "99999999999999999999999999", "97"],
        ["--terms", "30", "--width", "5"],
        ["--task", "multiplication", "--terms", "26", "--p", "5"],
        ["--task", "polynomial", "--polynomial", "(((9^99)^99)^99)^99*n1"],
        ["--task", "polynomial", "--polynomial", "n1^9999999999999999"],
        ["--task", "polynomial", "--phases", "random", "--polynomial", "(n1+1)^18*(n2+1)^18"],
        ["--phases", "equal", "--p", "12"],
        ["--exponents", "2", "3"],
        ["--task", "multiplication", "--coefficients", "2", "3"],
    ],
    ids=" ".join,
)
def test_hostile_input_is_refused_at_once(flags, tmp_path):
    example = Path(__file__).parent.parent / "examples" / "analytic_weights.py"
    command = [sys.executable, str(example), *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 300
    assert not list(tmp_path.iterdir())


def test_verification_samples_within_its_limit_and_shows_nan():
    task = addition(23)
    weights = addition_weights(task)
    assert verify.verify(weights, task, limit=100 * 67 * 23, sample=10**6).inputs == 100
    whole = verify.verify(weights, task, limit=529 * 67 * 23, sample=10)
    assert whole.whole
    assert whole.inputs == 529
    weights["U"][0, 5, 3] = np.nan
    assert np.isnan(verify.verify(weights, task).min_margin)
