"""Outputs of hidden LCG states: published vectors, the C definitions anew, and the data set."""

import numpy as np
import pytest
from test_examples import refused, results, run, succeeded

from tinygrok.engine.errors import InputError
from tinygrok.tasks import lcg, pcg
from tinygrok.tasks.modular import TaskError

# What O'Neill's C library prints: github.com/imneme/pcg-c, expected/check-setseq-*.out in test-low
# (check-pcg32.out in test-high: pcg32). Every generator is seeded by state 42 and sequence 54.
PUBLISHED = {
    ("xsh-rr", 64, 32): "a15c02b7 7b47f409 ba1d3330 83d2f293 bfa4784b cbed606e",
    ("xsh-rs", 64, 32): "5c1b65c0 8ffceb31 cccad075 b83cdfc6 5dfce9ca c0d524ec",
    ("xsl-rr", 64, 32): "068f20a8 ed610a2e 3911c946 d94c9c1c 0d4b401a 92ee3d83",
    ("xsh-rr", 32, 16): "0a76 61e2 8b45 dacf 2b23 9447 b23a 284b fcee 7d32",
    ("xsh-rs", 32, 16): "a6dd 8854 5bb1 ade3 6590 8921 8fde 0886 ef5a cf2c",
    ("xsh-rr", 16, 8): "f5 8a 7f cb ed fe ad e7 c7 2f 13 cc 15 cd",
    ("xsh-rs", 16, 8): "74 4d c7 64 af c0 2a 0b 56 58 06 a9 dc 53",
}
MULTIPLIERS = {16: 12829, 32: 747796405, 64: 6364136223846793005}


def rotated(value, places, k):
    """pcg_rotr_8, _16, _32 of Python's integers."""
    value &= 2**k - 1
    return (value >> places | value << (-places & (k - 1))) & (2**k - 1)


# The C definitions of pcg_variants.h by name and widths, on Python's integers.
IN_C = {
    ("xsh-rs", 16, 8): lambda s: ((s >> 7) ^ s) >> ((s >> 14) + 3) & 0xFF,
    ("xsh-rs", 32, 16): lambda s: ((s >> 11) ^ s) >> ((s >> 30) + 11) & 0xFFFF,
    ("xsh-rs", 64, 32): lambda s: ((s >> 22) ^ s) >> ((s >> 61) + 22) & 0xFFFFFFFF,
    ("xsh-rr", 16, 8): lambda s: rotated(((s >> 5) ^ s) >> 5, s >> 13, 8),
    ("xsh-rr", 32, 16): lambda s: rotated(((s >> 10) ^ s) >> 12, s >> 28, 16),
    ("xsh-rr", 64, 32): lambda s: rotated(((s >> 18) ^ s) >> 27, s >> 59, 32),
    ("xsl-rr", 64, 32): lambda s: rotated((s >> 32) ^ s, s >> 59, 32),
}


def started(w):
    """Multiplier, increment and first state of pcg_setseq_w_srandom_r(42, 54)."""
    a = MULTIPLIERS[w]
    c = 2 * 54 + 1
    state = c  # a step from 0
    state = (a * (state + 42) + c) % 2**w
    return a, c, state


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_published_vectors(case):
    """Of the library's generator and output, and of the definitions in C, one state at a time."""
    name, w, k = case
    numbers = [int(word, 16) for word in PUBLISHED[case].split()]
    a, c, state = started(w)
    states = lcg.generate(2**w, a, c, state, len(numbers))
    assert pcg.outputs(states, name, w, k).tolist() == numbers
    for number in numbers:
        assert IN_C[case](state) == number
        state = (a * state + c) % 2**w


@pytest.mark.parametrize("case", IN_C, ids=str)
def test_every_state_of_16_bits_and_the_edges_of_64(case):
    name, w, k = case
    rng = np.random.default_rng(w)
    states = (
        list(range(2**16))
        if w == 16
        else [int(x) << 1 for x in rng.integers(2 ** (w - 1), size=99)]
    )
    states += [0, 1, 2**w - 1, 2 ** (w - 1), 2 ** (w - 1) - 1]
    expected = [IN_C[case](state) for state in states]
    assert pcg.outputs(states, name, w, k).tolist() == expected


def bits(x, w):
    """The bits of x, the lowest first."""
    return [x >> i & 1 for i in range(w)]


def number(of_bits):
    return sum(bit << i for i, bit in enumerate(of_bits))


def shifted_in(x, w, by):
    """Bit i of x ^ (x >> by)."""
    padded = bits(x, w) + [0] * by
    return [padded[i] ^ padded[i + by] for i in range(w)]


def shift_bits(spare):
    """opbits of xsh_rs_mixin in pcg_random.hpp, for states of up to 64 bits."""
    if spare - 4 >= 32:
        return 4
    if spare - 3 >= 16:
        return 3
    if spare - 2 >= 4:
        return 2
    return 1 if spare - 1 >= 1 else 0


def by_bits(name, x, w, k):
    """An output bit by bit, for any widths."""
    log_k = max(n for n in range(7) if 2**n <= k)
    top = number(bits(x, w)[w - log_k :])
    if name == "truncated":
        return number(bits(x, w)[w - k :])
    if name == "xsl-rr":
        low = shifted_in(x, w, w // 2)[:k]
        return number(low[(i + top) % k] for i in range(k))
    if name == "xsh-rr":
        kept = shifted_in(x, w, (k + log_k) // 2)[w - log_k - k : w - log_k]
        return number(kept[(i + top) % k] for i in range(k))
    n = shift_bits(w - k)
    start = w - k - n - (2**n - 1) + number(bits(x, w)[w - n :])
    return number(shifted_in(x, w, n + (k + 2**n - 1) // 2)[start : start + k])


SMALL = [(10, 4), (10, 5), (10, 6), (11, 5), (12, 6), (12, 8), (9, 3), (8, 2), (6, 5)]
LARGE = [(30, 11), (29, 11), (50, 14), (50, 15), (64, 27), (64, 58), (63, 63)]


def takes(name, w, k):
    """Whether an output has such widths: a rotation needs log2 k bits beside its k."""
    return not name.endswith("rr") or k + int(np.log2(k)) <= w


@pytest.mark.parametrize("name", pcg.OUTPUTS)
@pytest.mark.parametrize(("w", "k"), SMALL)
def test_every_state_bit_by_bit_and_every_output_equally_often(name, w, k):
    if takes(name, w, k):
        found = pcg.outputs(np.arange(2**w), name, w, k)
        assert found.tolist() == [by_bits(name, x, w, k) for x in range(2**w)]
        assert np.bincount(found, minlength=2**k).tolist() == [2 ** (w - k)] * 2**k


@pytest.mark.parametrize("name", pcg.OUTPUTS)
@pytest.mark.parametrize(("w", "k"), LARGE)
def test_states_of_many_bits_bit_by_bit(name, w, k):
    """Also where the number of bits that tell the shift changes."""
    if takes(name, w, k):
        drawn = np.random.default_rng(w).integers(0, 2**w - 1, 50, dtype=np.uint64, endpoint=True)
        states = [0, 2**w - 1, 2 ** (w - 1), *map(int, drawn)]
        expected = [by_bits(name, x, w, k) for x in states]
        assert pcg.outputs(states, name, w, k).tolist() == expected


def test_integers_of_any_type_and_shape():
    states = np.array([[0, 255], [128, 77]])
    expected = pcg.outputs(states, "xsh-rr", 8, 4)
    assert expected.dtype == np.int64
    assert expected.shape == (2, 2)
    for kind in (np.uint8, np.uint64, np.float32, object):
        assert np.array_equal(pcg.outputs(states.astype(kind), "xsh-rr", np.uint8(8), 4), expected)
    assert pcg.outputs(2**64 - 1, "truncated", 64, 64) == 2**64 - 1
    assert pcg.outputs(np.uint64(2**63), "truncated", np.uint8(64), np.uint8(1)) == 1
    assert pcg.outputs(np.empty((0, 3)), "xsl-rr", 8, 4).shape == (0, 3)


@pytest.mark.parametrize(
    ("name", "w", "k"), [("xsh-rr", 10, 1), ("xsh-rr", 9, 8), ("xsl-rr", 4, 4), ("xsl-rr", 12, 1)]
)
def test_widths_that_an_output_cannot_have(name, w, k):
    with pytest.raises(TaskError) as found:
        pcg.hidden_state(name, w, k, 8, np.random.default_rng(0))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("w", "k"), [(0, 0), (65, 4), (8, 9), (8, 0), (8, 2.5), ("x", 3)])
def test_widths_that_nothing_has(w, k):
    with pytest.raises(InputError):
        pcg.outputs([0], "truncated", w, k)
    with pytest.raises(InputError):
        pcg.outputs([256, -1], "truncated", 8, 3)


@pytest.mark.parametrize("name", pcg.OUTPUTS)
def test_data_are_outputs_of_full_period_and_test_other_parameters(name):
    data = pcg.hidden_state(name, np.uint8(8), np.uint8(4), 256, np.random.default_rng(3), 20, 9)
    assert (data.vocab, data.first, data.base, data.positions.size) == (16, 1, None, 255)
    m, test_a, test_c = data.tests["256"]
    assert m == 256
    assert not np.isin(test_a, data.a).any()
    assert not np.isin(test_c, data.c).any()
    for pool in (data.a, test_a):
        assert np.all(pool % 4 == 1)
    for pool in (data.c, test_c):
        assert np.all(pool % 2 == 1)
    for rows in data.sets(np.random.default_rng(1), 12).values():
        assert rows.shape == (12, 256)
        for row in rows:  # a whole period shows every output equally often
            assert np.bincount(row, minlength=16).tolist() == [16] * 16


def test_sequences_are_what_the_states_show():
    """The same draws without the output function, then the output of every state."""
    data = pcg.hidden_state("xsh-rs", 10, 5, 20, np.random.default_rng(0))
    states = lcg.fixed_modulus_digits(1024, 20, 1024, 1, np.random.default_rng(0), pool=128)
    x, a = states.test("1024", 7, np.random.default_rng(5))
    shown, same_a = data.test("1024", 7, np.random.default_rng(5))
    assert np.array_equal(a, same_a)
    assert np.array_equal(shown, pcg.outputs(x, "xsh-rs", 10, 5))
    assert np.array_equal(data.tokens(shown), shown)
    assert np.array_equal(data.numbers(shown), shown)


def test_hidden_bits_leave_the_period_of_the_shown_ones():
    """Bit i of k of a truncated state of w bits repeats after 2^(w - k + i) numbers, not sooner."""
    data = pcg.hidden_state("truncated", 8, 4, 512, np.random.default_rng(0), 20, 9)
    rows = data.batch(10, np.random.default_rng(0))
    for i in range(1, 5):
        bit = rows >> (i - 1) & 1
        period = 2 ** (4 + i)
        assert np.array_equal(bit[:, period:], bit[:, :-period])
        assert np.array_equal(bit[:, period // 2 :], 1 - bit[:, : -period // 2])


TINY = "--modulus 256 --pool 20 --test-draws 9 --context 12 --width 16 --test-rows 8"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["truncated", "xsh-rr"])
def test_predict_lcg_with_a_hidden_state(name, tmp_path):
    """A few steps, taken up again; chance and look-backs beside it; lcg_probe opens no such run."""
    flags = f"--generator {name} --keep-bits 4 {TINY} --measure-every 2"
    succeeded(run("predict_lcg", flags, "--steps 4", cwd=tmp_path))
    folder = tmp_path / "runs/predict_lcg"
    written = results(folder)["results"]
    assert written["chance"] == 1 / 16
    assert list(written["digit_accuracy"]) == ["2", "4", "8", "16"]
    assert written["look-back order 2: accuracy_last"] >= 0
    assert not any(key.startswith("known modulus") for key in written)
    assert (folder / "predict_lcg.png").stat().st_size > 5_000
    again = succeeded(run("predict_lcg", flags, "--steps 6 --resume --no-plot", cwd=tmp_path))
    assert "resumed at step 4" in again.stdout
    probed = refused(run("lcg_probe", "--rows 5", cwd=tmp_path))
    assert "hidden state" in probed.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--mode unseen",
        "--base 16",
        "--modulus 1000",
        "--keep-bits 1",
        "--keep-bits 8",
        "--keep-bits 27",
        "--modulus 64",
    ],
)
def test_predict_lcg_refuses_what_hides_nothing(flags, tmp_path):
    refused(run("predict_lcg", "--generator xsh-rr", TINY, flags, cwd=tmp_path))
    assert not list(tmp_path.iterdir())
