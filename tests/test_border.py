"""Numbers that come in: every integer type gives the same answer, what is none is refused."""

import numpy as np
import pytest
from _corrupted_orders import contributions, margin_order
from _in_context_shots import line_failures, noise_random, noise_single
from _lcg_opened import order_2_moves

from tinygrok.analytic.polynomial import PolynomialNetwork
from tinygrok.analytic.verify import evaluator
from tinygrok.engine.border import integer, integers, rates
from tinygrok.engine.errors import InputError
from tinygrok.engine.optim import SGD, AdamW
from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models.gpt import GPT
from tinygrok.models.mlp import TwoLayerNet
from tinygrok.models.tokens import Tokens
from tinygrok.models.vision import deep_mlp
from tinygrok.ops.embedding import RowIndex
from tinygrok.probes import digits, representation, shots
from tinygrok.probes.fourier import neuron_rows
from tinygrok.tasks import in_context, lcg, modular
from tinygrok.tasks.corruption import corrupt
from tinygrok.tasks.groups import composition, dihedral
from tinygrok.training.batches import ImageBatch, TableBatch, TokenBatch
from tinygrok.training.images import ImageTraining
from tinygrok.training.sequences import SequenceTraining
from tinygrok.training.tables import Evaluation, Training

TYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.uint64, float, object]
P = 97  # 97^2 and 60 + 50 + ... leave 8 bits


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


# -- the border itself -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*TYPES, np.int64, np.float32, ">i8", "<u2"])
def test_every_type_of_whole_numbers_becomes_int64(kind):
    given = np.array([[3, 0], [97, 5]]).astype(kind)
    for x in (given, given[::-1].T, given.tolist()):
        found = integers(x, "x", 0, 97)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, np.array(x, dtype=float))
    assert type(integer(given[1, 0], "x")) is int
    assert integers(np.array([], kind), "x").dtype == np.int64


def test_int64_is_not_copied():
    x = np.arange(5)
    assert integers(x, "x") is x or np.shares_memory(integers(x, "x"), x)


def test_beyond_64_bits_it_is_exact_or_refused():
    big = [2**63, 2**64, 1]
    assert integers(big, "x", 0, 2**64).tolist() == big
    assert integers(np.array([2**63 + 1], np.uint64), "x", 0, 2**64).tolist() == [2**63 + 1]
    assert integers([2**53 + 1, 2**63 - 1], "x").tolist() == [2**53 + 1, 2**63 - 1]
    assert integer(10**30, "x", 0, float("inf")) == 10**30
    with pytest.raises(InputError, match=r"x must lie in 0\.\.18446744073709551616, not -1"):
        integers([-1], "x", 0, 2**64)
    with pytest.raises(InputError, match="x must be at least 3, not 2"):
        integers([2], "x", 3)
    for wrong in (big, np.array([2**63], np.uint64), np.array([1, 2**63 + 1.0])):
        with pytest.raises(InputError):
            integers(wrong, "x")


NO_INTEGERS = {
    "fraction": [1, 2.5],
    "nan": np.array([1, np.nan]),
    "infinite": np.array([np.inf]),
    "rounded": np.array([2.0**60]),
    "mask": np.array([True, False]),
    "one truth": [1, True],
    "text": ["1", "2"],
    "none": [1, None],
    "complex": np.array([1j]),
    "ragged": [[1, 2], [3]],
}


@pytest.mark.parametrize("kind", NO_INTEGERS)
def test_what_is_no_integer_is_refused_by_name(kind):
    with pytest.raises(InputError, match="labels must") as error:
        integers(NO_INTEGERS[kind], "labels")
    one_line(error)


@pytest.mark.parametrize(("x", "says"), [([0, -1], "-1"), (np.uint8([5, 10]), "10"), (-7, "-7")])
def test_what_is_out_of_range_is_named(x, says):
    with pytest.raises(InputError, match=rf"labels must lie in 0\.\.9, not {says}"):
        integers(x, "labels", 0, 9)


# -- tasks and probes: the same answer for every type ----------------------------------------------


def constant_solver(triples):
    """Logits of a model whose answer is always 3."""
    return np.eye(P)[np.full(triples.shape[:2], 3)]


def echo(tokens):
    """The predictor that answers what it just read."""
    return tokens


class Echo:
    @staticmethod
    def predict(tokens):
        return tokens


def data_of(p, shots_, tasks):
    train = [[5, 6], [7, 8]]
    if isinstance(tasks, np.ndarray):
        train = np.array(train).astype(tasks.dtype)
    return in_context.InContextData(p, shots_, tasks, tasks, train, train)


def rng():
    return np.random.default_rng(0)


PAIRS = [[3, 50, 96], [5, 60, 96]]  # inputs (2, B)
CONTEXT = [[3, 5], [50, 60]]
FACTORS = {2: 3, 3: 2}
LCG = [[3, 50, 96, 72], [5, 60, 96, 71]]  # numbers (B, T)
TASKS = {
    "addition": modular.addition(P, (3, 5)),
    "subtraction": modular.subtraction(P),
    "multiplication": modular.multiplication(P, (2, 3)),
    "division": modular.division(P),
    "polynomial": modular.polynomial(P, {(2, 1): 96, (0, 1): 3}),
    "own": modular.ModularTask("own", P, 2, lambda n: n[0] ** 2 - 3 * n[1]),
    "composition": composition(120),
    "dihedral": dihedral(120),
}
X = [[CONTEXT[0], CONTEXT[1]]]
EXAMPLES = {
    **{name: lambda kind, t=task: t.labels(kind(PAIRS)) for name, task in TASKS.items()},
    "corrupt": lambda kind: corrupt(TASKS["subtraction"], kind([[9, 80]])[0], 0.5, rng(), "strict"),
    "inputs": lambda kind: TASKS["addition"].inputs(kind([3, 120])),
    "separable": lambda kind: modular.separable(
        3, kind([[3, 50, 96]] * 2), kind(LCG[0][:3])
    ).table(),
    "product": lambda kind: modular.product(3, kind([[3, 50, 96]] * 2), kind(LCG[0][:3])).table(),
    "coefficients": lambda kind: modular.addition(P, kind([3, 95])).table(),
    "exponents": lambda kind: modular.multiplication(P, kind([3, 95])).table(),
    "pair_numbers": lambda kind: modular.pair_numbers(kind(CONTEXT), P),
    "sequences": lambda kind: data_of(P, 2, kind(CONTEXT)).sequences(kind(CONTEXT), kind(X)),
    "batch": lambda kind: data_of(P, 2, kind(CONTEXT)).batch(4, rng()),
    "ratio": lambda kind: in_context.ratio_matching(P, kind(X), kind([[7, 90]]), kind([[6, 10]])),
    "regression": lambda kind: in_context.modular_regression(
        P, kind(X), kind([[7, 90]]), kind([[6, 11]])
    ),
    "retrieval": lambda kind: in_context.retrieval(
        P, kind(X), kind([[7, 90]]), kind([[6, 11]]), kind(CONTEXT)
    ),
    "generate": lambda kind: lcg.generate(kind([P, 89]), kind([90, 80]), kind([5, 96]), kind(9), 9),
    "known_modulus": lambda kind: lcg.known_modulus(kind(LCG), kind([P, 101])),
    "unknown_modulus": lambda kind: lcg.unknown_modulus(kind([[3, 50, 96, 72, 5, 60, 96, 71]])),
    "look_back": lambda kind: lcg.look_back(kind(LCG), 120, 2),
    "to_digits": lambda kind: lcg.to_digits(kind(LCG), 5, 3),
    "from_digits": lambda kind: lcg.from_digits(kind(LCG), 97),
    "digits": lambda kind: list(digits.digits(kind(LCG), FACTORS).values()),
    "digit_accuracy": lambda kind: list(
        digits.digit_accuracy(kind(LCG), kind(LCG[::-1]), FACTORS).values()
    ),
    "by_valuation": lambda kind: list(digits.by_valuation(np.eye(3), kind([3, 65, 97])).values()),
    "interventions": lambda kind: digits.interventions(echo, kind(LCG), P, [1, 3], [90, 5]),
    "order_2_moves": lambda kind: order_2_moves(Echo, kind([LCG[0] * 2]), 96)[1][2],
    "modulus_estimates": lambda kind: digits.modulus_estimates(
        np.ones((2, 4, 1)), np.ones((5, 1)), kind(LCG)
    ),
    "covered": lambda kind: shots.covered(P, kind(CONTEXT)),
    "spanned": lambda kind: shots.spanned(P, kind(CONTEXT)),
    "classes": lambda kind: list(shots.classes(P, kind(CONTEXT)).values()),
    "grid": lambda kind: shots.grid(constant_solver, P, kind([90, 80]), kind(CONTEXT))["loss"],
    "noise_random": lambda kind: noise_random(constant_solver, P, triples(kind), rng())["accuracy"],
    "noise_single": lambda kind: noise_single(constant_solver, P, triples(kind), rng()),
    "contributions": lambda kind: contributions(
        np.eye(2), np.arange(8.0).reshape(2, 4), kind([3, 0]), np.array([0.1, 0.9])
    ),
    "neuron_rows": lambda kind: neuron_rows(
        {"U": np.arange(12.0).reshape(2, 3, 2), "W": np.eye(2, 3)}, kind([2, 0])
    ),
    "character_power": lambda kind: representation.character_power(
        np.eye(5)[:, :2], kind([1, 2, 4, 3])
    ),
}


def triples(kind):
    return kind([[[3, 5, 90], [50, 60, 96]], [[1, 2, 3], [4, 5, 6]]])


def flat(result):
    parts = result if isinstance(result, tuple | list) else [result]
    return np.concatenate([np.ravel(part).astype(float) for part in parts])


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_type_gives_the_same_answer(name):
    expected = flat(EXAMPLES[name](np.array))
    for t in TYPES:
        found = EXAMPLES[name](lambda x, t=t: np.array(x).astype(t))
        np.testing.assert_array_equal(flat(found), expected, err_msg=str(t))
    lists = EXAMPLES[name](lambda x: x)
    np.testing.assert_array_equal(flat(lists), expected)


OF_P = {
    "addition": lambda p: modular.addition(p).table(),
    "subtraction": lambda p: modular.subtraction(p).table(),
    "multiplication": lambda p: modular.multiplication(p).table(),
    "division": lambda p: modular.division(p).table(),
    "own": lambda p: modular.ModularTask("own", p, np.uint8(2), lambda n: n[0] - n[1]).table(),
    "size": lambda p: modular.addition(p, (1,) * 9).size % 10**6,
    "polynomial": lambda p: modular.polynomial(p, {(1, 1): np.uint8(250)}).table(),
    "network": lambda p: PolynomialNetwork(p, {(1, 1): 1}).top["U"],
    "all_pairs": modular.all_pairs,
    "powers": lambda p: modular.powers(p, np.uint8(3)),
    "inverses": modular.inverses,
    "discrete_log": modular.discrete_log,
    "prime_factors": lambda p: list(modular.prime_factors(p)),
    "random_tasks": lambda p: in_context.random_tasks(p, 9, rng()),
    "rectangles": lambda p: in_context.rectangle_tasks(p, np.uint8(90), rng()),
    "data": lambda p: in_context.InContextData.make(p, np.uint8(3), 8, 0.5, rng()).batch(8, rng()),
    "ratio": lambda p: in_context.ratio_matching(
        p, np.array(X), np.array([[7, 90]]), np.array([[6, 10]])
    ),
    "directions": shots.directions,
    "spanned": lambda p: shots.spanned(p, np.array(CONTEXT)),
    "classes": lambda p: list(shots.classes(p, np.array(CONTEXT)).values()),
    "line_failures": lambda p: line_failures(p, np.zeros(P * P, bool), np.ones(P * P, bool))[
        "lines"
    ],
    "generate": lambda p: lcg.generate(p, p - 4, 90, 7, 20),
    "known_modulus": lambda p: lcg.known_modulus(np.array(LCG), p),
    "look_back": lambda p: lcg.look_back(np.array(LCG), p),
    "interventions": lambda p: digits.interventions(echo, np.array(LCG), p, [1], [90]),
}


@pytest.mark.parametrize("name", OF_P)
def test_a_modulus_of_every_type(name):
    expected = flat(OF_P[name](P))
    for t in (np.uint8, np.int8, np.int16, np.int64, np.uint32, np.float64):
        np.testing.assert_array_equal(flat(OF_P[name](t(P))), expected, err_msg=str(t))


LCG_OF_M = {
    "multipliers": lambda m: list(lcg.multipliers(m)),
    "increments": lcg.increments,
    "fixed": lambda m: lcg.fixed_modulus(m, 9, rng(), 4).batch(3, rng()),
    "digits": lambda m: lcg.fixed_modulus_digits(
        m, 9, np.uint8(16), np.uint8(2), rng(), 8, 4
    ).batch(3, rng()),
    "order_2_moves": lambda m: order_2_moves(Echo, np.array([LCG[0] * 2]), m)[1][2],
}


@pytest.mark.parametrize("name", LCG_OF_M)
def test_a_modulus_of_lcg_of_every_type(name):
    expected = flat(LCG_OF_M[name](128))
    for t in (np.uint8, np.int16, np.int64, np.uint64, np.float64):
        np.testing.assert_array_equal(flat(LCG_OF_M[name](t(128))), expected, err_msg=str(t))


ADDITION = TASKS["addition"]
REFUSED = {
    "negative input": lambda: ADDITION.labels(np.array([[-1], [3]])),
    "input p": lambda: ADDITION.labels(np.array([[P], [3]])),
    "three rows of inputs": lambda: composition(6).labels(modular.all_pairs(3)[:3].T[[0, 1, 0]]),
    "half an input": lambda: ADDITION.labels(np.array([[0.5], [3]])),
    "a mask for numbers": lambda: ADDITION.inputs(np.ones(9, bool)),
    "number of no input": lambda: ADDITION.inputs([P * P]),
    "half an answer": lambda: modular.ModularTask("half", 5, 1, lambda n: n[0] / 2).labels([[1]]),
    "half a modulus": lambda: modular.subtraction(97.5),
    "a huge modulus": lambda: modular.addition(2**61 - 1),
    "half a coefficient": lambda: modular.polynomial(7, {(1, 1): 2.5}),
    "half an exponent": lambda: modular.powers(7, 2.5),
    "a root of no prime": lambda: modular.primitive_root(12),
    "pair beyond p": lambda: modular.pair_numbers(np.array([[0, 7]]), 7),
    "token -1": lambda: lcg.to_digits(np.array([-1]), 10, 4),
    "number beyond its digits": lambda: lcg.to_digits(np.array([2026]), 10, 3),
    "digit beyond the base": lambda: lcg.from_digits(np.array([1, 10]), 10),
    "number -1 of a generator": lambda: lcg.known_modulus(np.array([[1, -1, 2]]), 7),
    "number m of a generator": lambda: lcg.look_back(np.array([[1, 7, 2]]), 7),
    "multiplier 1": lambda: digits.by_valuation(np.ones((1, 3)), np.array([1])),
    "look-back 0": lambda: digits.interventions(echo, np.array(LCG), P, [0], [1]),
    "negative token": lambda: digits.modulus_estimates(np.ones((1, 1, 1)), np.ones((5, 1)), [[-1]]),
    "context beyond p": lambda: shots.covered(7, np.array([[1, 7]])),
    "negative context": lambda: shots.grid(constant_solver, P, [1, 1], np.array([[-1, 3]])),
    "negative answer": lambda: noise_single(constant_solver, P, -triples(np.array), rng()),
    "negative label": lambda: margin_order(
        np.eye(2), np.eye(2), np.ones(2, bool), np.array([0, -1])
    ),
    "order with -1": lambda: neuron_rows({"U": np.ones((2, 3, 4)), "W": np.ones((4, 3))}, [-1, 1]),
    "powers with 0": lambda: representation.circle(np.eye(5), np.array([0, 1, 2, 3])),
    "negative task": lambda: data_of(7, 2, np.array([[-1, 2]])),
    "pair of a sequence": lambda: data_of(P, 2, np.array(CONTEXT)).sequences([[1, 2]], [[[-1, 3]]]),
    "half a shot": lambda: data_of(P, 2.5, np.array(CONTEXT)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_numbers_are_refused(name):
    with pytest.raises(InputError) as error:
        REFUSED[name]()
    one_line(error)


def test_no_answer_is_no_digit():
    """A predictor's -1 is right in no digit, not in all those of p - 1."""
    table = digits.digit_accuracy(np.array([[-1], [7]]), np.array([[7], [7]]), {2: 3})
    assert [float(right[0]) for right in table.values()] == [0.5] * 3


# -- batches, measurements, networks ---------------------------------------------------------------

CHAIN = deep_mlp(4, 8, 1, 3)
IMAGES = np.random.default_rng(0).standard_normal((4, 2, 2, 1))
GPT_11 = GPT(11, 8, 1, 2, 8)


def batches(dev):
    """Batches whose targets are [0, 1, 2, 1] in a type, and those of a network of 3 classes."""
    net = TwoLayerNet(5, 4, classes=3)
    inputs = np.array([[1, 2, 3, 4], [0, 1, 2, 3]])
    tokens = np.array([[9, 0, 1, 2, 1]])
    return {
        "table": lambda y: TableBatch(dev, net, [(inputs.astype(y.dtype), y)]),
        "images": lambda y: ImageBatch(dev, CHAIN, (IMAGES, y)),
        "tokens": lambda y: TokenBatch(
            dev, GPT(3, 8, 1, 2, 8), np.concatenate([y[:1], y])[None], np.arange(4)
        ),
        "positions": lambda y: TokenBatch(dev, GPT_11, tokens, y[:3].astype(y.dtype)),
    }


@pytest.mark.parametrize("kind", ["table", "images", "tokens", "positions"])
def test_batches_read_every_type(dev, kind):
    make = batches(dev)[kind]

    def targets(batch):
        return np.concatenate([dev.to_host(shard.target).ravel() for shard in batch.shards()])

    expected = targets(make(np.array([0, 1, 2, 1])))
    for t in TYPES:
        found = targets(make(np.array([0, 1, 2, 1]).astype(t)))
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, expected)
    for wrong in ([0, 1, -1, 1], [0, 1, 2.5, 1], [0, 1, 99, 1]):
        with pytest.raises(InputError) as error:
            make(np.array(wrong))
        one_line(error)


@pytest.mark.parametrize("t", [np.uint8, np.int8, np.int64, float])
def test_sizes_of_networks_of_every_type(host_dev, t):
    """p = labels.max() + 1 of an array of uint8 is an uint8."""
    for small, net in (
        (TwoLayerNet(t(97), t(100), t(2)), TwoLayerNet(97, 100)),
        (TwoLayerNet(t(5), 100, classes=t(97)), TwoLayerNet(5, 100, classes=97)),
        (GPT(t(97), t(64), t(2), t(4), t(100)), GPT(97, 64, 2, 4, 100)),
        (deep_mlp(64, 100, 2, t(97)), deep_mlp(64, 100, 2, 97)),
    ):
        assert Arena(host_dev, small.shapes).flat.size == Arena(host_dev, net.shapes).flat.size
        assert repr(small) == repr(net)
    for wrong in (0, -1, 2.5):
        with pytest.raises(InputError):
            deep_mlp(64, 100, 2, wrong)
        with pytest.raises(InputError, match="p must"):
            TwoLayerNet(wrong, 100)


def test_tokens_and_rows_read_every_type(dev):
    for t in TYPES:
        tokens = Tokens(dev, np.array([[3, 0, 10]]).astype(t), 11)
        np.testing.assert_array_equal(tokens.rows.host.ravel(), [3, 0, 10])
        assert RowIndex(dev, np.array([[3, 0]]).astype(t), 5).host.dtype == np.int64
    with pytest.raises(InputError, match=r"tokens must lie in 0\.\.10, not -1"):
        Tokens(dev, np.array([[3, -1]]), 11)
    with pytest.raises(InputError, match=r"inputs must lie in 0\.\.4, not 5"):
        RowIndex(dev, np.array([[5]], np.uint8), 5)


def test_an_analytic_network_is_not_asked_beyond_its_tables(host_dev):
    logits = evaluator(host_dev, PolynomialNetwork(5, {(1, 1): 1}))
    with pytest.raises(InputError, match="-1"):
        logits(np.array([[-1], [2]]))


def train_on(dev, loss, labels):
    """Case 08a: the whole table of a division, undefined answers too."""
    task = modular.division(13)
    inputs = task.inputs(np.arange(task.size))
    net = TwoLayerNet(13, 20)
    params, grads = Arena(dev, net.shapes), Arena(dev, net.shapes)
    params.load(net.init(generator(0, "init")))
    splits = {"all": (np.ones(task.size, bool), "true")}
    measured = Evaluation(inputs, {"true": np.maximum(labels, 0) if loss else labels}, splits)
    optimizer = AdamW(dev, params, grads, lr=0.01)
    Training(dev, net, optimizer, [(inputs, labels)], measured, 0, loss or "mse").fit(2)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", None])
@pytest.mark.parametrize("wrong", [-1, 13, 255])
def test_labels_that_are_no_class_are_refused(dev, loss, wrong):
    """In training, and (loss None) in the measurement alone."""
    labels = modular.division(13).table().ravel()
    labels = np.where(labels < 0, wrong, labels)
    with pytest.raises(InputError, match=f"labels.*not {wrong}"):
        train_on(dev, loss, labels)
    train_on(dev, loss, np.where(labels == wrong, 0, labels).astype(np.uint8))


def test_measured_labels_beyond_the_classes_are_refused(host_dev):
    task = modular.addition(7)
    inputs = task.inputs(np.arange(task.size))
    measured = Evaluation(inputs, {"true": np.full(task.size, 7)}, {})
    net = TwoLayerNet(7, 8)
    params = Arena(host_dev, net.shapes)
    data = [(inputs, task.labels(inputs))]
    with pytest.raises(InputError, match=r"labels 'true' must lie in 0\.\.6, not 7"):
        Training(host_dev, net, SGD(host_dev, params, params), data, measured, 0)


def test_a_mask_does_not_stand_for_numbers():
    task = modular.addition(7)
    with pytest.raises(InputError, match="train"):
        Evaluation.of_task(task, train=np.ones(task.size, bool))
    with pytest.raises(InputError, match="test"):
        Evaluation.of_task(task, test=np.array([-1]))


@pytest.mark.parametrize("t", [np.int8, np.uint8, np.uint32])
def test_training_has_the_same_bits_with_small_types(host_dev, t):
    """Tables, sequences and images as int64 and in a small type."""
    runs = {}
    for kind in (np.int64, t):
        task = modular.subtraction(kind(7))
        inputs = task.inputs(np.arange(30)).astype(kind)
        labels = task.labels(inputs).astype(kind)
        table = new_run(host_dev, TwoLayerNet(7, 8))
        measured = Evaluation(inputs, {"true": labels}, {})
        run = Training(*table, [(inputs, labels)], measured, 0, "mse", 10)
        tokens = np.random.default_rng(0).integers(0, 11, (6, 8)).astype(kind)
        text = SequenceTraining(
            *new_run(host_dev, GPT_11), lambda rng, t, x=tokens: x, np.arange(7).astype(kind), {}, 0
        )
        y = np.array([0, 1, 2, 1]).astype(kind)
        pictures = ImageTraining(*new_run(host_dev, CHAIN), lambda rng, t, y=y: (IMAGES, y), {}, 0)
        for each in (run, text, pictures):
            each.step()
        runs[kind] = [each.params.flat.copy() for each in (run, text, pictures)]
    for a, b in zip(runs[np.int64], runs[t], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("batch_size", [None, 10])
def test_training_reads_lists(host_dev, batch_size):
    task = modular.subtraction(7)
    inputs = task.inputs(np.arange(30))
    labels = task.labels(inputs)
    flat_weights = []
    for x, y in ((inputs, labels), (inputs.tolist(), labels.tolist())):
        splits = {"all": (np.ones(30, bool), "true")}
        measured = Evaluation(x, {"true": y}, splits)
        parts = new_run(host_dev, TwoLayerNet(7, 8))
        run = Training(*parts, [(x, y)], measured, 0, "mse", batch_size)
        run.fit(2)
        flat_weights.append(run.params.flat.copy())
    np.testing.assert_array_equal(*flat_weights)


def new_run(dev, net):
    params, grads = Arena(dev, net.shapes), Arena(dev, net.shapes)
    params.load(net.init(generator(0, "init")))
    return dev, net, AdamW(dev, params, grads, lr=0.01)


# -- words -----------------------------------------------------------------------------------------


def test_floors_of_the_learning_rate_are_the_authors(host_dev):
    import _lcg_setup
    import predict_lcg

    floors = {"paper-2048": 1e-6, "paper-2048-unseen": 1e-6, "paper-2^16": 1e-7, "paper-2^32": 1e-7}
    for preset, floor in floors.items():
        args = predict_lcg.arguments(["--preset", preset])
        optimizer = _lcg_setup.make_optimizer(args, host_dev, GPT_11)
        assert optimizer.lr * optimizer.schedule(args.steps) == pytest.approx(floor)


# -- settings of a run -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, "fast", [0.1, 0.2], None])
def test_rates_that_are_none(value):
    with pytest.raises(InputError, match="the learning rate must be"):
        rates(value, "the learning rate", 3)


SETTINGS = [
    ({"lr": -1.0}, "the learning rate"),
    ({"weight_decay": -1.0}, "the weight decay"),
    ({"batch_size": 2.5}, "the batch size"),
    ({"batch_size": 0}, "the batch size"),
    ({"batch_size": 1000}, "the batch size must lie in 1..12"),
    ({"seed": -1}, "a seed"),
    ({"seed": "0"}, "a seed"),
    ({"optimizer": "adam"}, "unknown optimizer 'adam': choose adamw, sgd"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS, ids=[str(s) for s, _ in SETTINGS])
def test_settings_of_a_run_are_checked(settings, message):
    with pytest.raises(InputError, match=message):
        Training.on_task(TwoLayerNet(5, 4), modular.addition(5), device="cpu", **settings)


@pytest.mark.parametrize("options", [{"steps": 3.5}, {"steps": -1}, {"steps": 2, "log_every": 0}])
def test_lengths_of_a_run_are_checked(options):
    run = Training.on_task(TwoLayerNet(5, 4), modular.addition(5), device="cpu", optimizer="sgd")
    assert isinstance(run.optimizer, SGD)
    with pytest.raises(InputError, match="the (number of )?steps"):
        run.fit(**options)
    assert run.t == 0
