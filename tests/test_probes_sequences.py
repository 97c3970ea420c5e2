"""The probes of the in-context decoder on arrays whose answer is known, and the opened decoder
against itself."""

import itertools
import math

import _in_context_features as features
import numpy as np
import pytest
from _in_context_features import by_chance, cosine_map, legendre, number, pair_score
from _in_context_shots import line_failures, noise_random, noise_single

from tinygrok.engine.errors import InputError
from tinygrok.engine.rng import generator
from tinygrok.models import inspect as inspect_gpt
from tinygrok.models.gpt import GPT, Tokens
from tinygrok.probes import attention, representation, shots
from tinygrok.tasks import in_context as ic
from tinygrok.tasks.modular import all_pairs, discrete_log

P = 13
LOG = discrete_log(P)
ORDER = np.argsort(LOG)[1:]


def waves(log, *frequencies):
    """cos and sin of the logarithm's angle at some frequencies, 0 for the number 0; (len(log), 2
    frequencies)."""
    angles = 2 * np.pi * np.outer(log, frequencies) / (P - 1)
    return np.where(log[:, None] < 0, 0, np.concatenate([np.cos(angles), np.sin(angles)], axis=1))


def pure(offset, T=48):
    """A head that looks back by an offset, or at token 0 where there is nothing."""
    pattern = np.zeros((T, T))
    pattern[np.arange(T), np.maximum(np.arange(T) - offset, 0)] = 1
    return pattern


# -- attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", range(7))
def test_pure_offset_heads(offset):
    A = np.stack([pure(offset), np.tril(np.ones((48, 48))) / np.arange(1, 49)[:, None]])
    table = attention.by_offset(A)
    assert table.shape == (2, 3, 7)
    assert (table[0] == np.eye(7)[offset]).all()
    late = [np.mean(1 / np.arange(first, 49, 3)) for first in (22, 23, 24)]
    np.testing.assert_allclose(table[1], np.tile(np.array(late)[:, None], 7))
    mass = attention.by_type(A)
    kinds = np.concatenate([mass[name] for name in "xyz"], axis=-1)
    np.testing.assert_allclose(kinds.sum(axis=-1) + mass["sink"].sum(axis=-1), 1)
    for query in range(3):
        assert kinds[0, query, (query - offset) % 3] == 1
        assert mass["own"][0, query, 0] == (offset <= query)
        assert mass["previous"][0, query, 0] == (query < offset <= query + 3)


def test_the_sink_is_kept_apart():
    A = np.zeros((30, 30))
    A[:, 0], A[:, 1], A[:, 3] = 0.5, 0.3, 0.2
    mass = attention.by_type(A)
    np.testing.assert_allclose(mass["sink"], [[0.5, 0.3]] * 3)
    np.testing.assert_allclose(
        np.concatenate([mass[n] for n in "xyz"], axis=-1), [[0.2, 0, 0]] * 3, atol=1e-15
    )
    with pytest.raises(InputError):
        attention.by_type(A[:20, :20])


# -- representations -------------------------------------------------------------------------------


def test_pca_is_the_svd_of_centred_data():
    x = generator(0, "probes").normal(size=(20, 7)) + 5
    scores, shares, directions = representation.pca(x, 3)
    u, s, v = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(scores), np.abs(u[:, :3] * s[:3]), atol=1e-12)
    np.testing.assert_allclose(shares, (s**2 / (s**2).sum())[:3])
    np.testing.assert_allclose((x - x.mean(axis=0)) @ directions.T, scores, atol=1e-12)
    at = np.abs(scores).argmax(axis=0)
    assert (scores[at, range(3)] > 0).all()
    flipped = representation.pca(-x, 3)[0]
    np.testing.assert_allclose(np.abs(flipped), np.abs(scores), atol=1e-12)


@pytest.mark.parametrize("m", range(1, 6))
def test_a_circle_in_the_logarithm(m):
    feature = waves(LOG, m) @ generator(1, "probes").normal(size=(2, 9)) + 3
    circle = representation.circle(feature, ORDER)
    assert circle["m"] == m
    assert circle["share"] == pytest.approx(1)
    assert circle["gcd"] == math.gcd(m, P - 1)
    assert circle["zero"] == pytest.approx(0, abs=1e-12)
    if circle["base"] is None:
        assert circle["gcd"] > 1
    else:  # in the order of its powers the points go round once
        powers = np.array([pow(circle["base"], k, P) for k in range(P - 1)])
        assert sorted(powers) == list(range(1, P))
        assert representation.circle(feature, powers)["m"] == 1


def test_the_circle_needs_no_generator():
    rng = generator(2, "probes")
    feature = waves(LOG, 1, 5) @ np.diag([1, 2, 1, 2]) + 0.1 * rng.normal(size=(P, 4))
    results = []
    for g in (2, 6, 7, 11):  # the primitive roots mod 13
        order = np.array([g**k % P for k in range(P - 1)])
        results.append(representation.circle(feature, order))
    assert len({round(r["share"], 12) for r in results}) == 1
    assert {r["base"] for r in results} == {results[0]["base"]}
    np.testing.assert_allclose(results[0]["share"], 0.8, atol=0.05)
    nothing = representation.circle(np.ones((P, 3)), ORDER)
    assert math.isnan(nothing["share"])
    assert nothing["base"] is None
    noise = representation.character_power(rng.normal(size=(P, 20000)), ORDER)
    np.testing.assert_allclose(noise, [2 / (P - 2)] * 5 + [1 / (P - 2)], atol=0.01)


def test_papers_base_27():
    """log_27 n = 15 log_2 n mod 28: a circle of frequency one in base 27 has m = 15, that is {13,
    15}, in base 2."""
    log = discrete_log(29)
    angle = 2 * np.pi * 15 * log / 28
    feature = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    circle = representation.circle(feature, np.argsort(log)[1:])
    assert circle["m"] == 13
    assert circle["base"] == min(27, pow(27, -1, 29))


def test_legendre_feature():
    symbol = np.array([0] + [1 if pow(n, (P - 1) // 2, P) == 1 else -1 for n in range(1, P)])
    basis = np.linalg.qr(generator(3, "probes").normal(size=(8, 3)))[0].T
    feature = np.column_stack([2 * waves(LOG, 1), symbol]) @ basis + 1
    result = legendre(feature, ORDER)
    assert result["component"] == 2
    assert abs(result["correlation"][2]) == pytest.approx(1)
    assert result["r2"] == pytest.approx(1)
    np.testing.assert_allclose(result["correlation"][:2], 0, atol=1e-12)
    assert representation.character_power(symbol[:, None].astype(float), ORDER)[
        -1
    ] == pytest.approx(1)


def test_p_values_tell_a_circle_from_noise():
    """The true order of a circle is the best of all; of noise it is one among many."""
    rng = generator(0, "probes")
    circle = np.column_stack([waves(LOG, 1), np.zeros(P)])
    found, _ = number(circle + 1e-3 * rng.normal(size=circle.shape), ORDER, rng)
    assert found["circle_p"] < 0.01
    assert found["legendre_p"] > 0.01
    noise, _ = number(rng.normal(size=(P, 6)), ORDER, rng)
    assert noise["circle_p"] > 0.01
    assert by_chance(lambda order: 1.0, ORDER, rng) == 1
    constant, _ = number(np.ones((P, 6)), ORDER, rng)
    assert np.isnan(constant["circle_p"])
    assert constant["legendre_p"] == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_p_values_count_orders_that_differ_by_rounding_alone(dtype, monkeypatch):
    """All 720 orders mod 7 beside those drawn: 12 keep a circle, a tenth of them a parity."""
    monkeypatch.setattr(features, "PERMUTATIONS", 1 + 720)
    log = discrete_log(7)[1:]
    order = 1 + np.argsort(log)
    noise = 0.05 * generator(5, "probes").normal(size=(7, 6))
    noise[1:, 0] += np.cos(2 * np.pi * log / 6)
    noise[1:, 1] += np.sin(2 * np.pi * log / 6)
    circle = noise.astype(dtype)
    symbol = circle.copy()
    symbol[1:, :2] = symbol[1:, 2:4]
    symbol[1:, 0] += (-1.0) ** log

    class EveryOrder:
        def __init__(self):
            self.orders = itertools.permutations(order)

        def permutation(self, _):
            return np.array(next(self.orders))

    def share(order):
        return representation.circle(circle, order)["share"]

    def correlation(order):
        return abs(legendre(symbol, order)["correlation"]).max()

    assert by_chance(share, order, EveryOrder()) == (1 + 12) / 721
    assert by_chance(correlation, order, EveryOrder()) == (1 + 72) / 721


@pytest.mark.parametrize("kind", ["ratio", "answer"])
def test_cosine_maps_of_ratio_and_answer(kind):
    task = np.array([3, 5])
    labels = {"ratio": shots.directions(P), "answer": all_pairs(P) @ task % P}
    table = generator(4, "probes").normal(size=(P + 2, 400))
    similarity = cosine_map(table[labels[kind]] * 7 + 2)
    np.testing.assert_allclose(np.diag(similarity), 1)
    scores = {name: pair_score(similarity, label) for name, label in labels.items()}
    other = "answer" if kind == "ratio" else "ratio"
    assert scores[kind] == pytest.approx(1, abs=0.05)
    assert abs(scores[other]) < 0.1
    # Inside block (x, x') the ratio is the line y' = y x'/x, the answer y' = y + (a/b)(x - x').
    x = y = 2
    for x1 in range(1, P):
        line = (
            y * pow(x, -1, P) * x1 % P
            if kind == "ratio"
            else (y + 3 * pow(5, -1, P) * (x - x1)) % P
        )
        assert similarity[x * P + y, x1 * P + line] == pytest.approx(1)


def test_pair_score_by_hand():
    similarity = np.array([[1, 0.5, 0.1, 9], [0.5, 1, 0.3, 9], [0.1, 0.3, 1, 9], [9, 9, 9, 9]])
    assert pair_score(similarity, np.array([0, 0, 1, -1])) == pytest.approx(0.5 - 0.2)
    assert math.isnan(pair_score(similarity, np.arange(4)))


# -- shots -----------------------------------------------------------------------------------------


def standing_in(solver, p=P, ignore=()):
    """A reference solver as a model: logits of an answer, class p for `I do not know`; `ignore`:
    examples it does not read."""

    def logits(triples):
        z = np.zeros((*triples.shape[:2], p + 1))
        for k in range(triples.shape[1]):
            examples = triples[:, [i for i in range(k) if i not in ignore]]
            answer, known = solver(p, examples[..., :2], examples[..., 2], triples[:, k, :2])
            z[np.arange(len(z)), k, np.where(known, answer, p)] = 10
        return z

    return logits


CONTEXT = np.array([(4, 1), (2, 6), (8, 2), (0, 5)])  # the third is twice the first: three lines
TASK = np.array([6, 5])


def test_ratio_matching_gives_its_set_and_fails_on_lines():
    for k in range(1, 5):
        result = shots.grid(standing_in(ic.ratio_matching), P, TASK, CONTEXT[:k])
        ratio = shots.covered(P, CONTEXT[:k])
        assert (result["correct"] == ratio).all()
        assert ratio.sum() == 1 + (P - 1) * [1, 2, 2, 3][k - 1]
        assert (result["prediction"][~ratio] == P).all()
        assert (result["loss"][ratio] < 1e-3).all()
        failed = line_failures(P, result["correct"], np.ones(P * P, bool))
        assert failed["errors"] == failed["on_lines"] == (~ratio).sum()
        assert set(failed["lines"]) == set(range(P + 1)) - set(
            shots.directions(P)[CONTEXT[:k] @ [P, 1]]
        )
        assert line_failures(P, result["correct"], ratio) == {
            "errors": 0,
            "on_lines": 0,
            "lines": [],
        }


def test_an_ignored_example_is_a_whole_line_and_scattered_errors_are_not():
    correct = shots.grid(standing_in(ic.ratio_matching, ignore=(1,)), P, TASK, CONTEXT)["correct"]
    ratio = shots.covered(P, CONTEXT)
    failed = line_failures(P, correct, ratio)
    assert failed == {"errors": P - 1, "on_lines": P - 1, "lines": [6 * pow(2, -1, P) % P]}
    scattered = ratio.copy()
    scattered[np.flatnonzero(ratio)[1::2]] = False
    assert line_failures(P, scattered, ratio)["on_lines"] == 0


def test_modular_regression_gives_the_span():
    for k in range(1, 5):
        correct = shots.grid(standing_in(ic.modular_regression), P, TASK, CONTEXT[:k])["correct"]
        assert (correct == shots.spanned(P, CONTEXT[:k])).all()
        assert correct.all() == (k > 1)


def test_sets_agree_with_the_solvers():
    rng = generator(5, "probes")
    queries = all_pairs(5)
    for _ in range(50):
        context = rng.integers(5, size=(rng.integers(1, 5), 2))
        X, Z = np.broadcast_to(context, (25, *context.shape)), np.zeros((25, len(context)), int)
        zero = ~queries.any(axis=1)
        assert (shots.covered(5, context) == ic.ratio_matching(5, X, Z, queries)[1]).all()
        assert (shots.spanned(5, context) == ic.modular_regression(5, X, Z, queries)[1]).all()
        masks = shots.classes(5, context)
        assert (sum(m.astype(int) for m in masks.values()) == 1).all()
        assert (masks["repeat"] == (queries[:, None] == context).all(axis=-1).any(axis=1)).all()
        assert not masks["unspanned"][zero]
    assert not shots.covered(5, np.empty((0, 2), int)).any()
    assert (
        shots.directions(5)[[0, 1, 5, 7, 14]] == [-1, 5, 0, 2, 2]
    ).all()  # (0,0) (0,1) (1,0) (1,2) (2,4)


def test_papers_context_has_the_counted_sets():
    """One example covers 29 queries of 841, two on different lines 57."""
    context = np.array([(4, 21), (2, 6)])
    assert [int(shots.covered(29, context[:k]).sum()) for k in (1, 2)] == [29, 57]
    assert shots.directions(29)[4 * 29 + 21] == 27


def test_one_wrong_label_destroys_the_queries_that_match_it():
    rng = generator(6, "probes")
    pairs = rng.integers(1, 5, size=(30, 8, 2))  # few lines: many matches
    triples = np.concatenate([pairs, (pairs @ TASK % P)[..., None]], axis=-1)
    right, clean = noise_single(standing_in(ic.ratio_matching), P, triples, rng)
    assert right.shape == (30, 8, 8)
    assert clean.shape == (30, 8)
    lines = shots.directions(P)[pairs @ [P, 1]]
    for b, j, k in np.ndindex(right.shape):
        first = np.flatnonzero(lines[b, :k] == lines[b, k])[:1]  # this solver uses the first match
        assert right[b, j, k] == (clean[b, k] and j not in first)


def test_random_wrong_labels():
    """A model that copies the label of the example before: right when that is clean, which has
    probability 1 - m/k."""
    n, rng = 6, generator(7, "probes")
    triples = np.ones((20000, n, 3), int)

    def logits(triples):
        before = np.concatenate([np.zeros_like(triples[:, :1, 2]), triples[:, :-1, 2]], axis=1)
        return 20.0 * np.eye(P)[before]

    result = noise_random(logits, P, triples, rng)
    k, m = np.indices((n, n))
    assert np.isnan(result["accuracy"][m > k]).all()
    assert result["count"].sum() == 20000 * n
    expected = np.where(k > 0, 1 - m / np.maximum(k, 1), 0)
    np.testing.assert_allclose(result["accuracy"][m <= k], expected[m <= k], atol=0.03)
    np.testing.assert_allclose(result["count"][5], 20000 / 6, rtol=0.1)  # uniform in m
    assert (triples == 1).all()


# -- the opened decoder ----------------------------------------------------------------------------


@pytest.fixture(params=[10**9, 2000], ids=["one shard", "many shards"])
def opened(request, monkeypatch, dev):
    """A random decoder with a vocabulary larger than p, and what it computes in one piece."""
    monkeypatch.setattr(inspect_gpt, "SHARD_BYTES", {"cpu": request.param, "cuda": request.param})
    net = GPT.in_context(9, 12, 3, 2, 18)
    weights = net.init(generator(0, "init"), 0.5)
    triples = generator(0, "probes").integers(7, size=(11, 6, 3))
    decoder = inspect_gpt.Decoder(dev, net, weights, 7)
    z, tape = net.forward(
        dev, decoder.weights, Tokens(dev, triples.reshape(11, -1), 9), record=True
    )
    tape = {
        name: dev.to_host(tape[name])
        for i in range(3)
        for name in (f"blocks.{i}.in", f"blocks.{i}.mid", f"blocks.{i}.end")
    }
    return decoder, triples, dev.to_host(z).reshape(11, 18, 9), tape


def test_opened_decoder(opened):
    decoder, triples, z, tape = opened
    close = {"rtol": 0, "atol": 1e-12 if decoder.dev.dtype == np.float64 else 1e-4}
    logits = decoder.logits(triples)
    np.testing.assert_allclose(logits, z[:, 1::3, :7], **close)
    lens = decoder.lens(triples)
    assert lens.shape == (11, 4, 6, 7)
    np.testing.assert_allclose(lens[:, -1], logits, **close)
    patterns = decoder.patterns(triples)
    assert patterns.shape == (11, 3, 2, 18, 18)
    np.testing.assert_allclose(patterns.sum(axis=-1), 1, **close)
    tokens = [3, 4, 16]
    heads, streams = decoder.heads(triples, tokens), decoder.residuals(triples, tokens)
    assert heads.shape == (11, 3, 2, 3, 12)
    assert streams.shape == (11, 3, 3, 12)
    for i in range(3):  # the heads together are what attention adds to the stream
        before, middle = (
            tape[f"blocks.{i}.{name}"].reshape(11, 18, 12)[:, tokens] for name in ("in", "mid")
        )
        np.testing.assert_allclose(heads[:, i].sum(axis=1), middle - before, **close)
        np.testing.assert_allclose(
            streams[:, i], tape[f"blocks.{i}.end"].reshape(11, 18, 12)[:, tokens], **close
        )


def test_the_last_answer_is_not_read(opened):
    decoder, triples, *_ = opened
    changed = triples.copy()
    changed[:, -1, 2] = (changed[:, -1, 2] + 1) % 7
    np.testing.assert_array_equal(decoder.logits(changed), decoder.logits(triples))
