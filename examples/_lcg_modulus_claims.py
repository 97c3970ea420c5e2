"""What lcg_probe.py finds out about a network for unseen moduli, each number beside its control.

An analysis returns its results, what the figure of its name shows, and its lines: (what, [mean,
standard error], the control, [mean, standard error])."""

import _lcg_modulus as estimates
import _lcg_modulus_heads as heads
import _lcg_modulus_induction as induction
import numpy as np
from _lcg_families import MixedLcg
from _lcg_opened import heads_on_modulus

from tinygrok.models.inspect import Decoder
from tinygrok.probes import decoder as opened

PROBED = 4  # times --rows: sequences that the linear probe is fitted on
ATTENDED = 128  # sequences whose attention is read
LEFT_OUT = "moduli without a comparison of r + 2 numbers"
FEW = 8  # times fewer sequences of each modulus than --rows


def mean_of(rows):
    """[mean, error] of rows [value, error], the errors taken as independent."""
    mean, error = np.transpose(rows)
    return [mean.mean(), np.linalg.norm(error) / len(rows)]


def some(sequences):
    """About ATTENDED of them, of all moduli: attention maps are large."""
    step = max(len(sequences.x) // ATTENDED, 1)
    return estimates.Sequences(*(x[::step] for x in sequences))


def on_the_largest(attention):
    """The head of the first block that attends most to the largest number; (2, depth, H, 2)."""
    return int((attention[0] - attention[1])[0, :, 0].argmax())


def tests_of(data):
    """Names of the tests that are opened: of a mixture either the full period or a = 1."""
    if not isinstance(data, MixedLcg):
        return list(data.tests)
    wrap = not estimates.asks_full_period(data)
    return [name for name in data.tests if name.endswith(", a = 1") == wrap]


def modulus(decoder, sequences, embedding, rng):
    """What heads of the first block say of m by their cosines, beside the largest number so far."""
    m = int(sequences.m[0])
    same = sequences.x[sequences.m == m]
    tokens = same[:32, : same.shape[1] // 2]
    weights = decoder.model.init(rng)
    untrained = Decoder(decoder.dev, decoder.model, weights)
    distances, error, similar = heads_on_modulus(decoder, tokens, embedding, m)
    by_chance, *_ = heads_on_modulus(untrained, tokens, weights["embed.token"], m)
    results = {"head_from_largest": distances, "maximum_estimator_error": error}
    what = f"|nearest number - largest| / m, head 0.{distances.argmin()}"
    lines = [
        (what, [distances.min(), np.nan], "untrained, nearest head", [by_chance.min(), np.nan])
    ]
    return results, (similar, tokens[0], m), lines


def linear_probe(decoder, data, sequences, attention, rows, rng):
    """Whether m is there to be read, where, and how well beside the largest number."""
    found, counts = estimates.probe(decoder, data, sequences, rows, rng)
    depth, H = attention.shape[1:3]
    error = {name: x[-1] for (title, name), x in found.items() if title == "median error"}
    r2 = {name: x[-1] for (title, name), x in found.items() if title == "R^2"}
    says = [r2[f"head 0.{h}"] for h in range(H)]
    best = int(np.argmax([value for value, _ in says]))
    rest = says[:best] + says[best + 1 :] or says
    most = on_the_largest(attention)
    lines = [
        ("error of m, first block", error["block 0"], "untrained", error["untrained block 0"]),
        ("error of m, first block", error["block 0"], "largest + 1", error["largest + 1"]),
        ("R^2, first block", r2["block 0"], "last number alone", r2["number"]),
        ("R^2, first block", r2["block 0"], "moduli shuffled", r2["shuffled block 0"]),
        ("R^2, first block", r2["block 0"], "last block", r2[f"block {depth - 1}"]),
        (f"R^2, head 0.{best} alone", says[best], "the block's other heads", mean_of(rest)),
        (
            f"attention of 0.{most} on the largest",
            attention[0, 0, most],
            "matched",
            attention[1, 0, most],
        ),
    ]
    results = {f"probe {title}, {name}": values for (title, name), values in found.items()}
    results["attention on the largest number"] = attention[0, ..., 0]
    results["attention on the largest number, matched"] = attention[1, ..., 0]
    return results, (found, counts, attention), lines


def largest_number(decoder, data, sequences, rng):
    """Interventions on the largest number, in a short and in the whole context."""
    T = sequences.x.shape[1] - 1
    results = {}
    shown = {}
    lines = []
    for n in sorted({min(max(T // 4, 8), T), T}):
        table = estimates.largest_number(decoder, sequences, n, data.vocab, rng)
        if not table:
            continue
        for what in ("changed", "follows"):
            results[f"{n} numbers, {what}"] = [row[what] for row in table.values()]
        shown[n] = table
        for kind in ("by a larger", "by a smaller", "hidden"):
            largest = table[f"largest, {kind}"]["changed"]
            another = table[f"another, {kind}"]["changed"]
            lines.append((f"changed, largest of {n} {kind}", largest, "another", another))
        follows = table["largest, by a larger"]["follows"]
        for control in ("another, by a larger", "another, by a smaller"):
            rest = table[control]["follows"]
            lines.append((f"wraps by a larger number of {n}", follows, control, rest))
    return results, (shown,), lines


def residues(decoder, data, rng):
    """Whether the parts of the first block show the residues of a single number."""
    shares, points = heads.residues(decoder, data.vocab, rng)
    results = {f"residue share above chance, {name}": values for name, values in shares.items()}
    best = [shares["network"].max(), 0.0]
    lines = []
    for control in ("untrained", "numbers permuted"):
        lines.append(("largest residue share", best, control, [np.max(shares[control]), 0.0]))
    return results, (points, shares, heads.PERIODS), lines


def pruning(decoder, data, names, rows, rng):
    """Whether heads belong to moduli: pruning by modulus."""
    wrap = all((data.tests[name][1] == 1).all() for name in names)
    sequences = heads.many_moduli(data, rows, rng, wrap)
    lost, moduli = heads.pruning(decoder, data, sequences, rng)
    results = {"moduli of the pruning": moduli}
    results |= {f"share lost without a {kind}": values for kind, values in lost.items()}
    lines = []
    if len(moduli) > 1:
        found = {kind: heads.largest_specificity(x, moduli, rng) for kind, x in lost.items()}
        value, which, chance = found["head"]
        what = f"pruning specific to a prime ({which})"
        lines.append((what, value, "moduli permuted, 95%", chance))
        lines.append((what, value, "random directions", found["random"][0]))
    names = [f"{i}.{h}" for i, h in np.ndindex(decoder.model.depth, decoder.model.heads)]
    return results, (lost, moduli, names), lines


def patching(decoder, data, names, rows, rng):
    """Whether a head from a run of another modulus changes the modulus of the answers."""
    found, clean = heads.patching(decoder, data, names, rows, rng)
    results = {f"below m/2, patched from mod {donor}": x[..., 0] for donor, x in found.items()}
    results["below m/2, unpatched"] = clean
    lines = []
    for control in ("m", "m/2, but one number m - 1"):
        effect = (found["m/2"] - found[control])[..., 0]
        i, h = np.unravel_index(effect.argmax(), effect.shape)
        what = f"below m/2, head {i}.{h} from mod m/2"
        lines.append((what, found["m/2"][i, h], f"from mod {control}", found[control][i, h]))
    lines.append((what, found["m/2"][i, h], "unpatched", clean))
    return results, (found, clean), lines


def differences(decoder, data, sequences, most, rng):
    """Induction on differences: when it is right, which heads look there, and without them."""
    found, by_order = induction.accuracy(decoder, sequences)
    backs = induction.look_backs(decoder, some(sequences))
    means = opened.head_means(decoder, data.batch(256, rng)[:, :-1])
    following = np.nan_to_num(backs["following"][..., 0, 0] - backs["following"][..., 1, 0])
    ranked = np.argsort(-following, axis=None, kind="stable")[:2]
    chosen = [tuple(int(k) for k in np.unravel_index(i, following.shape)) for i in ranked]
    without = induction.pruned(decoder, sequences, means, chosen)
    results = {f"accuracy, {name}": pair for name, pair in found.items()}
    results[LEFT_OUT] = induction.left_out(sequences)
    for name, table in backs.items():
        results[f"attention, {name}"] = table[..., 0, 0]
        results[f"attention, {name}, matched"] = table[..., 1, 0]
    results |= {f"accuracy without heads, {name}": table for name, table in without.items()}
    past = found["past the order"]
    seen = found["difference seen"]
    solver = found["solver, seen"]
    lines = [
        ("accuracy from r + 2 numbers on", past[0], "before", past[1]),
        ("accuracy, difference seen", seen[0], "only the one m away", seen[1]),
        ("accuracy, only the one m away", seen[1], "classical solver", solver[1]),
    ]
    for i, h in chosen:
        pair = backs["following"][i, h]
        lines.append((f"attention of {i}.{h} on x_(t+1-kr)", pair[0], "matched", pair[1]))
    these, others = list(without)[-2:]
    what = f"accuracy without {these}, no wrap"
    lines.append((what, without[these][0], f"without {others}", without[others][0]))
    for kind, name in enumerate(("no wrap", "wrap seen", "wrap not seen")):
        what = f"accuracy without 0.{most}, {name}"
        lines.append((what, without[f"0.{most}"][kind], "with it", without["none"][kind]))
    return results, (found, by_order, backs, without), lines


def analyse(decoder, data, names, embedding, rows, rng):
    """{name of a figure: (results, what it shows, lines)} of the tests of these names."""
    few = max(rows // FEW, 2)
    sequences = estimates.unseen(data, names, few, rng)
    attention = estimates.attention_on_largest(decoder, some(sequences))
    probed = PROBED * rows
    return {
        "modulus": modulus(decoder, sequences, embedding, rng),
        "linear_probe": linear_probe(decoder, data, sequences, attention, probed, rng),
        "largest_number": largest_number(decoder, data, sequences, rng),
        "residues": residues(decoder, data, rng),
        "pruning": pruning(decoder, data, names, max(few // 4, 2), rng),
        "patching": patching(decoder, data, names, few, rng),
        "differences": differences(decoder, data, sequences, on_the_largest(attention), rng),
    }


def written(lines):
    """Lines as results: {"what; control": [mean, error, mean, error of the control]}."""
    table = {}
    for what, found, name, control in lines:
        table[f"{what}; {name}"] = np.round([*found, *control], 4).tolist()
    return table


def print_lines(lines, left_out=()):
    """What was found, and its control, with standard errors; which moduli one of them lacks."""
    if not lines:
        return
    width = max(len(what) for what, *_ in lines)
    print(f"\n{'':{width}}     here      +-   control      +-")
    for what, found, name, control in lines:
        here = f"{found[0]:9.3f}{found[1]:8.3f}"
        beside = f"{control[0]:10.3f}{control[1]:8.3f}"
        print(f"{what:{width}}{here}{beside}   {name}")
    if left_out:
        moduli = ", ".join(map(str, left_out))
        print(f"r + 2 numbers: without m = {moduli}, whose multipliers have one order r")
