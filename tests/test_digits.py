"""Probes of pseudo-random number networks on predictors whose answer is known, and interventions
inside the decoder."""

import numpy as np
import pytest

from tinygrok.engine.params import Arena
from tinygrok.engine.rng import generator
from tinygrok.models import inspect as inspect_gpt
from tinygrok.models.gpt import GPT, Tokens
from tinygrok.models.inspect import Decoder
from tinygrok.probes import digits
from tinygrok.probes.representation import cosine
from tinygrok.tasks import lcg


def sequences(m, length, rows=400, seed=0):
    """Numbers (rows, length) of full period and their multipliers."""
    rng = generator(seed, "probes")
    a, c = lcg.draw_multipliers(m, rows, rng, True), lcg.draw_increments(m, rows, rng, True)
    x0 = rng.integers(m, size=rows, dtype=np.uint64)
    return lcg.generate(m, a, c, x0, length), a


# -- digits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [64, 2352, 1521, 29, 2048])
def test_digits_are_the_residue_number_system(m):
    x, factors = np.arange(m), lcg.prime_factors(m)
    parts = digits.digits(x, factors)
    assert list(parts) == [p**i for p, e in factors.items() for i in range(1, e + 1)]
    for p, e in factors.items():
        assert (sum(parts[p**i] * p ** (i - 1) for i in range(1, e + 1)) == x % p**e).all()
    assert (
        len(set(zip(*(d.tolist() for d in parts.values()), strict=True))) == m
    )  # Chinese remainders: all different
    assert all(
        set(d.tolist()) == set(range(next(p for p in factors if q % p == 0)))
        for q, d in parts.items()
    )


@pytest.mark.parametrize("m", [64, 2352])
def test_a_digit_repeats_after_its_period(m):
    x, _ = sequences(m, 200, 50)
    for q, digit in digits.digits(x, lcg.prime_factors(m)).items():
        periods = [r for r in range(1, 150) if (digit[:, r:] == digit[:, :-r]).all()]
        assert not periods and q >= 150 or periods[0] == q


@pytest.mark.parametrize("m", [2**48, 3**40, 2**63, 2**64])
def test_digits_of_large_numbers(m):
    x, a = sequences(m, 6, 20)
    factors = lcg.prime_factors(m)
    parts = digits.digits(x, factors)
    for p, e in factors.items():
        for i in range(1, e + 1):
            expected = [[v // p ** (i - 1) % p for v in row] for row in x.tolist()]
            assert parts[p**i].tolist() == expected
            assert parts[p**i].dtype == np.int64
    for accuracy in digits.digit_accuracy(x, x, factors).values():
        assert (accuracy == 1).all()
    s = [((v - 1) & (1 - v)).bit_length() - 1 for v in a.tolist()]
    assert set(digits.by_valuation(np.ones(x.shape), a)) == set(s)


def test_digit_accuracy_of_copying():
    """A copy from r numbers ago is right in the digits of period up to r, and at chance above."""
    x, _ = sequences(256, 65, 4000)
    predicted, r = np.zeros_like(x[:, :-1]), 16
    predicted[:, r - 1 :] = x[:, : 64 - r + 1]
    accuracy = digits.digit_accuracy(predicted, x[:, 1:], {2: 8})
    assert list(accuracy) == [2, 4, 8, 16, 32, 64, 128, 256]
    assert accuracy[2].shape == (64,)
    for q, right in accuracy.items():
        assert (right[r:] == 1).all() if q <= r else (right[r:] < 0.8).all()
    np.testing.assert_allclose(accuracy[256][r:], 0.5, atol=0.1)
    three = digits.digit_accuracy(
        np.zeros((900, 1), int), np.arange(900)[:, None], {2: 2, 3: 2, 5: 2}
    )
    np.testing.assert_allclose(
        [three[q][0] for q in (2, 4, 3, 9, 5, 25)], [1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 5, 1 / 5]
    )


def test_accuracy_by_valuation():
    right = np.array([[1, 0], [1, 1], [0, 0], [1, 1]], dtype=bool)
    table = digits.by_valuation(right, np.array([5, 13, 9, 2**31 + 1]))
    assert {s: v.tolist() for s, v in table.items()} == {2: [1, 0.5], 3: [0, 0], 31: [1, 1]}
    x, a = sequences(256, 33, 2000)
    exact = digits.by_valuation(lcg.look_back(x[:, :-1], 256, 2) == x[:, 1:], a)
    for s, curve in exact.items():  # order 2 with look-back r is exact when 2 (v(r) + s) - s >= 8
        assert [curve[2 * r - 1] == 1 for r in (2, 4, 8, 16)] == [
            2 * k + s >= 8 for k in (1, 2, 3, 4)
        ]


# -- attention and interventions -------------------------------------------------------------------


def test_look_back_mass():
    """Half the attention r numbers before the target, 0.3 at r/2, the rest on the query."""
    T = 40
    pattern = np.zeros((2, T, T))
    for n in range(1, T + 1):  # numbers in context; the target is x_n
        r = max(2**k for k in range(6) if 2**k <= n)
        for back, weight in ((r, 0.5), (max(r // 2, 1), 0.3), (1, 0.2)):
            pattern[0, n - 1, n - back] += weight
    pattern[1] = np.eye(T)
    r, mass = digits.look_back_mass(pattern)
    assert r[[0, 1, 2, 3, 7, 30, 31, 32]].tolist() == [1, 2, 2, 4, 8, 16, 32, 32]
    assert mass.shape == (2, T, 2)
    np.testing.assert_allclose(mass[0, 3:], [[0.5, 0.3]] * (T - 3))
    np.testing.assert_allclose(mass[0, 1:3], [[0.5, 0.5]] * 2)  # r/2 is the query itself
    assert (mass[1, 3:] == 0).all()
    assert (mass[1, 0] == 1).all()


def test_attention_to_the_largest_number():
    tokens = np.array([[3, 7, 5, 7, 9], [8, 2, 1, 0, 8]])
    largest = np.array([[0, 1, 1, 3, 4], [0, 0, 0, 0, 4]])
    pattern = np.zeros((2, 1, 3, 5, 5))
    pattern[:, 0, 0] = np.eye(5)[largest]
    pattern[:, 0, 1] = 0.25 * np.eye(5)[largest]
    pattern[:, 0, 2] = np.eye(5)  # on itself: the largest in 6 cases of 10
    np.testing.assert_allclose(digits.largest_mass(pattern, tokens), [[1, 0.25, 0.6]])


@pytest.mark.parametrize(("m", "n"), [(64, 32), (64, 24), (100, 20)])
def test_interventions_on_the_order_2_extrapolation(m, n):
    """x_n = 2 x_(n-r/2) - x_(n-r): moving x_(n-r) by delta moves the answer by -delta, x_(n-r/2) by
    2 delta, others not."""
    x, _ = sequences(m, n, 60)
    asked = []

    def predict(tokens):
        asked.append(tokens)
        return lcg.look_back(tokens, m, 2)

    before, half = x.copy(), max(r for r in range(1, n // 2 + 1) if m % r == 0)
    backs, deltas = [2 * half, half, 1, half + 1], [1, 2, half, m - 1]
    table = digits.interventions(predict, x, m, backs, deltas)
    assert table.shape == (4, 4, m)
    assert (x == before).all()
    assert all(((t >= 0) & (t < m)).all() for t in asked)
    for i, j in np.ndindex(4, 4):
        move = {2 * half: -deltas[j], half: 2 * deltas[j]}.get(backs[i], 0) % m
        assert table[i, j, move] == 1
        assert table[i, j].sum() == 1


# -- residues and the modulus ----------------------------------------------------------------------


def test_residue_share_is_the_power_of_a_period():
    n, rng = 64, generator(1, "probes")
    i = np.arange(n)
    pure = np.stack([(-1.0) ** i, np.cos(np.pi * i / 2), np.sin(3 * np.pi * i / 4)], axis=1)
    for column, period in enumerate((2, 4, 8)):
        shares = [digits.residue_share(pure[:, [column]], q) for q in (2, 4, 8, 16)]
        np.testing.assert_allclose(shares, [q >= period for q in (2, 4, 8, 16)], atol=1e-12)
    x = rng.normal(size=(n, 3))
    power = (np.abs(np.fft.fft(x - x.mean(axis=0), axis=0)) ** 2).sum(axis=1)
    for q in (2, 4, 8):
        assert digits.residue_share(x, q) == pytest.approx(power[:: n // q].sum() / power.sum())
    noise = rng.normal(size=(1000, 400))
    for q in (2, 3, 5, 7):  # q need not divide n
        assert digits.residue_share(noise, q) == pytest.approx((q - 1) / 999, rel=0.3)
        assert digits.residue_share(np.eye(q)[np.arange(1000) % q], q) == pytest.approx(1)
    assert digits.residue_share(np.ones((5, 2)), 3) == 0
    assert digits.residue_share(x, 1000) == pytest.approx(1)


def test_cosine():
    x = np.array([[[3.0, 4.0], [0.0, 0.0]]])
    np.testing.assert_allclose(
        cosine(x, np.array([[6.0, 8.0], [-8.0, 6.0], [-1.0, 0.0]])),
        [[[1, 0, -0.6], [0, 0, 0]]],
        atol=1e-15,
    )


def test_modulus_estimates():
    """A head that writes the embedding of the largest number so far is found out; the maximum
    estimator is that plus one."""
    embedding = generator(2, "probes").normal(size=(50, 16))
    tokens = np.array([[3, 7, 5, 41, 2], [9, 9, 10, 1, 30]])
    largest = np.maximum.accumulate(tokens, axis=1)
    estimate, maximum = digits.modulus_estimates(0.1 * embedding[largest], embedding, tokens)
    assert (estimate == largest).all()
    assert (maximum == largest + 1).all()


# -- interventions inside the decoder --------------------------------------------------------------

V, T, C, H = 9, 12, 8, 2


@pytest.fixture(params=[10**9, 2000], ids=["one shard", "many shards"])
def opened(request, monkeypatch, dev):
    """A random decoder of two blocks, its weights on the host, and tokens."""
    monkeypatch.setattr(inspect_gpt, "SHARD_BYTES", {"cpu": request.param, "cuda": request.param})
    net = GPT.numbers(V, C, 2, H, T)
    weights = net.init(generator(0, "init"), 0.7)
    return Decoder(dev, net, weights), weights, generator(3, "probes").integers(V, size=(11, T))


def logits(decoder, tokens, edit=None):
    return decoder._run_host(tokens, None, lambda z, tape: z.reshape(-1, T, V), edit)


def close(decoder, a, b):
    np.testing.assert_allclose(
        a, b, rtol=0, atol=1e-11 if decoder.dev.dtype == np.float64 else 2e-4
    )


def test_predictions_and_readings(opened):
    decoder, _, tokens = opened
    z, tape = decoder.model.forward(decoder.dev, decoder.weights, Tokens(decoder.dev, tokens, V))
    expected = decoder.dev.to_host(z).reshape(11, T, V)
    close(decoder, logits(decoder, tokens), expected)
    assert (decoder.predict(tokens) == logits(decoder, tokens).argmax(axis=-1)).all()
    for name in ("blocks.1.attn.pattern", "blocks.0.attn.out"):
        close(decoder, decoder.read(tokens, name), decoder.dev.to_host(tape[name]))
    assert decoder.patterns(tokens).shape == (11, 2, H, T, T)
    assert decoder.heads(tokens, [0]).shape == (11, 2, H, 1, C)


def test_top_k_attention(opened):
    decoder, _, tokens = opened
    clean = logits(decoder, tokens)
    for k in (T, T + 5):
        close(decoder, logits(decoder, tokens, decoder.top_k(k)), clean)
    seen = {}
    for k in (1, 3):

        def spy(name, x, rows, k=k):
            before = decoder.dev.to_host(x).copy()
            decoder.top_k(k)(name, x, rows)
            if name == "blocks.0.attn.pattern":
                seen[k, rows[0]] = before, decoder.dev.to_host(x)

        logits(decoder, tokens, spy)
    assert sum(len(before) for (k, _), (before, _) in seen.items() if k == 1) == 11
    for (k, _), (before, after) in seen.items():
        kept = np.argsort(-before, axis=-1)[..., :k]
        expected = np.zeros_like(before)
        np.put_along_axis(expected, kept, np.take_along_axis(before, kept, -1), -1)
        close(decoder, after, expected / expected.sum(axis=-1, keepdims=True))
        assert (
            np.triu(after, 1) == 0
        ).all()  # selected after the mask: no future key takes a place
        assert ((after > 0).sum(axis=-1) == np.minimum(np.arange(1, T + 1), k)).all()
    assert np.abs(logits(decoder, tokens, decoder.top_k(1)) - clean).max() > 0.1


@pytest.mark.parametrize(("block", "head"), [(0, 1), (1, 0)])
def test_pruning_a_head_with_zero_deletes_its_rows(opened, block, head):
    decoder, weights, tokens = opened
    name, D = f"blocks.{block}.attn.out.weight", C // H
    without = weights | {name: weights[name].copy()}
    without[name][head * D : (head + 1) * D] = 0
    expected = logits(Decoder(decoder.dev, decoder.model, without), tokens)
    pruned = logits(decoder, tokens, decoder.set_head(block, head, 0.0))
    close(decoder, pruned, expected)
    assert np.abs(pruned - logits(decoder, tokens)).max() > 1e-2
    shifted = logits(decoder, tokens, decoder.set_head(block, head, np.full(D, 0.25)))
    close(decoder, logits(decoder, tokens, decoder.set_head(block, head, 0.25)), shifted)


def test_patching_from_a_donor(opened):
    """A run patched with its own slice is unchanged; with all heads of the first block from a
    donor, it goes on as the donor does after that block, on the embeddings of its own tokens."""
    decoder, weights, tokens = opened
    donor, clean = tokens[::-1].copy(), logits(decoder, tokens)
    D = C // H

    def slices(sequences):
        return decoder.read(sequences, "blocks.0.attn.out").reshape(11, T, H, D)

    close(decoder, logits(decoder, tokens, decoder.set_head(0, 1, slices(tokens)[:, :, 1])), clean)
    values = slices(donor)[:, :, 1]
    patched = logits(decoder, tokens, decoder.set_head(0, 1, 1.25 * values))
    assert np.abs(patched - clean).max() > 1e-2
    row = logits(decoder, tokens[4:5], decoder.set_head(0, 1, 1.25 * values[4:5]))
    close(decoder, row, patched[4:5])  # every row takes its own donor, whatever its shard


def test_no_edit_costs_nothing_in_training(dev):
    """Gradients are the same with an edit that does nothing."""
    net = GPT.numbers(V, C, 1, H, T)
    params, first, second = (Arena(dev, net.shapes) for _ in range(3))
    params.load(net.init(generator(0, "init"), 0.5))
    tokens = Tokens(dev, generator(3, "probes").integers(V, size=(3, T)), V)
    for grads, options in ((first, {}), (second, {"edit": lambda name, x: None})):
        z, tape = net.forward(dev, params.views, tokens, **options)
        net.backward(dev, z.copy(), tape, grads.views)
    np.testing.assert_array_equal(dev.to_host(first.flat), dev.to_host(second.flat))
