"""The analyses of in_context_probe.py: each returns its results, and what figures show."""

from itertools import product

import numpy as np
from _in_context_features import cosine_map, number, pair_score
from _in_context_shots import line_failures, noise_random, noise_single

from tinygrok.probes import attention, representation, shots
from tinygrok.tasks.modular import all_pairs, discrete_log, pair_numbers

TITLES = {
    "id": "pre-training tasks, train inputs",
    "ood": "held-out tasks, train inputs",
    "any": "random tasks and inputs",
}


def task_sets(data):
    """Tasks by the side of the split; "any" where it is not known what was held out."""
    if not len(data.id_tasks):
        return {"any": data.ood_tasks}
    return {"id": data.id_tasks, "ood": data.ood_tasks}


def triples(data, tasks, pool, rows, rng):
    """(tasks rows, shots, 3): the same rows of inputs for every task."""
    pairs = data.draw_pairs(pool, rows, rng)
    return data.sequences(tasks, pairs).reshape(-1, data.shots, 3)


def all_pairs_at(shot, data, task, rng):
    """(p^2, shot + 1, 3): all pairs after the same triples; what comes later is not seen there."""
    p = data.p
    probe = np.empty((p * p, shot + 1, 3), dtype=int)
    context = data.draw_pairs(data.train_pool, 1, rng)[0]
    probe[:, :shot, :2] = context[:shot]
    probe[:, shot, :2] = all_pairs(p)
    probe[..., 2] = probe[..., :2] @ task % p
    return probe


def heads(decoder, data, rng):
    """Attention maps: relative offsets and types of tokens."""
    asked = triples(data, data.ood_tasks[:8], data.train_pool, 4, rng)
    patterns = decoder.patterns(asked)
    mean = patterns.mean(axis=0, dtype=float)
    first = min(attention.FIRST, 3 * data.shots - 3)
    offsets = attention.by_offset(mean, first=first)
    masses = attention.by_type(mean, first)
    mass = {name: values.sum(axis=-1) for name, values in masses.items()}
    results = {
        "head_offset": offsets[..., 1:].argmax(axis=-1) + 1,
        "head_offset_score": offsets[..., 1:].max(axis=-1),
    }
    results |= {f"attention_{name}": values for name, values in mass.items()}
    return results, (patterns[0, :, :, :48, :48], offsets, mass["sink"])


def each_head(measure, features):
    """[block][head]: measure(f) of features (depth, H, ...)."""
    return [[measure(f) for f in block] for block in features]


def numbers(embedding, outputs, rng):
    """Circles and parity in the embedding, and in head outputs (p^2, depth, H, 3, C)."""
    p = len(embedding)
    order = np.argsort(discrete_log(p))[1:]
    depth, H = outputs.shape[1:3]
    at_x_and_y = np.moveaxis(outputs[:, :, :, :2], 0, 2)
    pairs = at_x_and_y.reshape(depth, H, p * p, -1)
    by_xy = at_x_and_y.reshape(depth, H, p, p, -1)
    means = {"x": by_xy.mean(axis=3), "y": by_xy.mean(axis=2)}

    def circle(feature):
        return representation.circle(feature, order)

    tests = {name: each_head(circle, mean) for name, mean in means.items()}
    shares = np.array([[test["share"] for test in block] for block in tests["x"]])
    i, h = np.unravel_index(np.nan_to_num(shares).argmax(), shares.shape)
    best = f"block {i} head {h}"
    found, in_embedding = number(embedding, order, rng)
    results = {f"embedding_{name}": value for name, value in found.items()}
    found, in_head = number(means["x"][i, h], order, rng)
    results |= {f"head_{name}": value for name, value in found.items()}
    results |= {"circle_chance": 2 / (p - 2), "best_head": best}
    for name, of_heads in tests.items():
        for key in ("share", "m", "gcd"):
            values = [[test[key] for test in block] for block in of_heads]
            results[f"circle_{name}_{key}"] = values
    scores = np.array(each_head(lambda f: representation.pca(f)[0], pairs))
    rows = {"embedding": in_embedding, f"{best}, mean over y": in_head}
    return results, rows, (scores, in_head["log"], in_head["base"], tests)


def similarities(streams, outputs, task):
    """Cosine maps of block outputs (p^2, depth, 3, C), head outputs (p^2, depth, H, 3, C)."""
    p = round(len(streams) ** 0.5)
    labels = {"ratio": shots.directions(p), "answer": all_pairs(p) @ task % p}
    y_is_1 = np.arange(p) * p + 1  # the x token does not know y
    features = []
    for i in range(streams.shape[1]):
        features.append(("block", f"block {i}, x", streams[y_is_1, i, 0]))
        features.append(("block", f"block {i}, y", streams[:, i, 1]))
        features.append(("block", f"block {i}, z", streams[:, i, 2]))
        for h in range(outputs.shape[2]):
            features.append(("head", f"block {i}, head {h}, z", outputs[:, i, h, 2]))
    results = {}
    maps = {"block": [], "head": []}
    titles = {"block": [], "head": []}
    for kind, title, feature in features:
        token = title[-1]
        similarity = cosine_map(feature)
        scores = []
        for name, label in labels.items():
            if token == "x":
                continue
            score = pair_score(similarity, label)
            results.setdefault(f"{name}_score_{kind}_{token}", []).append(score)
            scores.append(f"{name} {score:+.2f}")
        maps[kind].append(similarity)
        titles[kind].append("\n".join([f"{title} token", *scores]))
    return results, maps, titles


def by_need(decoder, data, tasks, counts, contexts, rng):
    """Accuracy by what a query needs, and failures of whole lines.

    line_failures: share of the errors within the ratio-matching set that fall on whole lines;
    shuffled: the same of as many errors anywhere in that set."""
    p = data.p
    drawn = data.draw_pairs(data.train_pool, contexts, rng)
    trained = np.isin(np.arange(p * p), pair_numbers(data.train_pool, p))
    sides = np.array([trained, ~trained])[:, None]
    right = np.zeros((2, 4, len(counts)))  # inputs (of training, of test), shots.classes
    total = np.zeros((2, 4, len(counts)))
    errors = on_lines = shuffled = 0
    for pairs, task, column in product(drawn, tasks, range(len(counts))):
        context = pairs[: counts[column]]
        correct = shots.grid(decoder.logits, p, task, context)["correct"]
        classes = shots.classes(p, context)
        asked = sides & np.array(list(classes.values()))
        right[:, :, column] += (asked & correct).sum(axis=-1)
        total[:, :, column] += asked.sum(axis=-1)
        within = shots.covered(p, context)
        failed = line_failures(p, correct, within)
        errors += failed["errors"]
        on_lines += failed["on_lines"]
        anywhere = correct.copy()
        anywhere[within] = rng.permutation(correct[within])
        shuffled += line_failures(p, anywhere, within)["on_lines"]
    with np.errstate(invalid="ignore"):  # no query of a class: nan
        share = right / total
        covered = right[:, :2].sum(axis=1) / total[:, :2].sum(axis=1)  # repeats and multiples
        uncovered = right[:, 2:].sum(axis=1) / total[:, 2:].sum(axis=1)
    lines = np.array([on_lines, shuffled]) / max(1, errors)
    results = {
        "covered": covered[0],
        "uncovered": uncovered[0],
        "repeats": share[0, 0],
        "multiples": share[0, 1],
        "line_failures": lines[0],
        "line_failures_shuffled": lines[1],
    }
    if len(data.test_pool):
        results |= {"covered_test": covered[1], "uncovered_test": uncovered[1]}
    return results, dict(zip(classes, share[0], strict=True))


def wrong_label(decoder, data, rng):
    """One wrong label: share of right answers that stay right.

    matching: the query is a multiple of that example; other: it is not."""
    clean_triples = triples(data, data.ood_tasks[:8], data.train_pool, 16, rng)
    right, clean = noise_single(decoder.logits, data.p, clean_triples, rng)
    lines = shots.directions(data.p)[pair_numbers(clean_triples[..., :2], data.p)]
    same = lines[:, :-1] == lines[:, -1:]
    matching = right[:, :-1, -1][same & clean[:, -1:]]
    other = right[:, :-1, -1][~same & clean[:, -1:]]
    return {
        "one_wrong_matching": matching.mean() if len(matching) else np.nan,
        "one_wrong_other": other.mean(),
    }


def wrong_labels(decoder, data, draws, rng):
    """Many wrong labels, and the logit lens at the last shot."""
    results = {}
    tables = {}
    single = {}
    lens = {}
    pools = {"train": data.train_pool, "test": data.test_pool}
    if not len(data.test_pool):
        pools = {"any": data.train_pool}
    for name, tasks in task_sets(data).items():
        tasks = tasks[:32]
        rows = triples(data, tasks, data.train_pool, draws, rng)
        table = noise_random(decoder.logits, data.p, rows, rng)["accuracy"]
        tables[TITLES[name]] = table
        results[f"{name}_by_wrong_labels"] = table[-1]
        for side, pool in pools.items():
            key = f"{name}_{side}"
            rows = triples(data, tasks, pool, draws, rng)
            right, clean = noise_single(decoder.logits, data.p, rows[:1], rng)
            single[key] = (right[0], clean[0])
            answers = decoder.lens(rows)[:, :, -1].argmax(axis=-1)
            lens[key] = (answers == rows[:, None, -1, 2]).mean(axis=0)
            results[f"lens_{key}"] = lens[key]
    return results, lens, tables, single


def grids(decoder, data, task, counts, rng):
    """What the model answers to all queries, beside ratio matching and the span."""
    p = data.p
    context = data.draw_pairs(data.train_pool, 1, rng)[0]
    contexts = [context[:k] for k in counts]
    correct = [shots.grid(decoder.logits, p, task, pairs)["correct"] for pairs in contexts]
    ratio = [shots.covered(p, pairs) for pairs in contexts]
    span = [shots.spanned(p, pairs) for pairs in contexts]
    shape = (len(counts), p, p)
    return np.reshape(correct, shape), np.reshape(ratio, shape), np.reshape(span, shape)
