"""What in_context.py trains and measures: its data and network, and accuracies beside those of the
reference solvers."""

import _memory as memory
import numpy as np
from _in_context_rows import MEASURED, RULES, MixedRows
from _shares import moving_shares

from tinygrok import cli
from tinygrok.engine.rng import generator
from tinygrok.models.gpt import GPT
from tinygrok.tasks import in_context as ic
from tinygrok.tasks.modular import inverses

SETS = ("id_train", "id_test", "ood_train", "ood_test")
ROWS = {rule: f"ood_{rule.replace('-', '_')}" for rule in MEASURED}  # sets that some pools lack
SOLVERS = ("ratio_matching", "modular_regression", "retrieval")
FRESH = 4000  # sequences that are drawn anew at the end
LATE = 8  # examples in context from which on uncovered queries are counted together


def shares_of_rows(args):
    """Shares of the rules of rows; without --start they stay."""
    end = ("--rows", args.rows)
    start = ("--start", args.start) if args.start else end
    return moving_shares(RULES, start, end, args.ramp)


def check_batch(args):
    """Refuse a batch that its tasks do not divide: all see the same inputs."""
    each = args.tasks_per_step
    if each and each > args.tasks:
        raise cli.InputError(f"--tasks-per-step {each}: there are {args.tasks} --tasks")
    each = min(each or args.batch, args.tasks)
    if args.batch % each:
        several = f"the {each} tasks of a step, which all see the same inputs"
        raise cli.InputError(f"--batch {args.batch} must be a multiple of {several}")


def make_data(args):
    """The data set that the flags describe, from the seed's stream of splits."""
    rng = generator(args.seed, "split")
    size = (args.p, args.shots, args.tasks, args.alpha)
    data = ic.InContextData.make(*size, rng, args.rule, args.repeats)
    data.tasks_per_step = args.tasks_per_step
    return MixedRows(**vars(data), shares=shares_of_rows(args), fade=args.fade)


def make_model(args):
    vocab = args.vocab or args.p
    if vocab < args.p:
        raise cli.InputError(f"--vocab {vocab} does not hold the numbers 0..{args.p - 1}")
    size = (vocab, args.width, args.depth, args.heads)
    return GPT.in_context(*size, 3 * args.shots, recompute=args.recompute)


def require_memory(args, dev, net):
    """Of the network, and of the solvers' table: agreements of sequences, shots and tasks."""
    sequences = max(FRESH, ic.QUESTIONS * ic.MAX_OOD)
    # Answers, products and their residues (integers), and whether they are right.
    agreements = sequences * args.shots * args.tasks * (8 + 8 + 8 + 1)
    needed = memory.gpt(dev, net, args.batch, sequences)
    memory.require(dev, **needed, solvers=agreements)


def late(shots):
    """The shots with LATE examples or more in context, else the last one."""
    return slice(min(LATE, shots - 1), None)


def solvers(p, tokens, id_tasks):
    """K-shot accuracy of the three reference solvers on the very sequences that the network is
    measured on, and of these queries, all (sequences, shots):

    known       whether ratio matching has an answer
    uncovered   late ones for which it has none
    retrieved   whether retrieval is right"""
    triples = tokens.reshape(len(tokens), -1, 3)
    xy = triples[..., :2]
    z = triples[..., 2]
    accuracies = {name: [] for name in SOLVERS}
    known = []
    retrieved = []
    for k in range(z.shape[1]):
        context = (p, xy[:, :k], z[:, :k], xy[:, k])
        ratio = ic.ratio_matching(*context)
        regression = ic.modular_regression(*context)
        retrieval = ic.retrieval(*context, id_tasks)
        for name, answer in zip(SOLVERS, (ratio, regression, retrieval), strict=True):
            accuracies[name].append(ic.solver_accuracy(p, *answer, z[:, k]))
        known.append(ratio[1])
        retrieved.append(retrieval[0] == z[:, k])
    known = np.stack(known, axis=1)
    uncovered = ~known
    uncovered[:, : late(z.shape[1]).start] = False
    guessed = float(share_of(elimination(p, tokens), uncovered))
    queries = {"known": known, "uncovered": uncovered, "retrieved": np.stack(retrieved, axis=1)}
    return accuracies | queries | {"elimination": guessed}


def matched(p, tokens):
    """(sequences, shots): whether ratio matching has an answer to a query."""
    triples = tokens.reshape(len(tokens), -1, 3)
    xy = triples[..., :2]
    z = triples[..., 2]
    shots = range(z.shape[1])
    known = [ic.ratio_matching(p, xy[:, :k], z[:, :k], xy[:, k])[1] for k in shots]
    return np.stack(known, axis=1)


def rows_by_rule(p, sets):
    """Of the sets of rows by rule, by name: late queries without a match (of lines: all); and what
    a learner has there, and by shot, that matches and eliminates but never adds."""
    late_by_set = {}
    floors = {}
    for rule, name in ROWS.items():
        if name not in sets:
            continue
        known = matched(p, sets[name])
        asked = np.ones_like(known) if rule in ("line", "two-lines") else ~known
        asked[:, : late(asked.shape[1]).start] = False
        right = np.where(known, 1.0, elimination(p, sets[name]))
        late_by_set[name] = asked
        floors[name] = {"late": float(share_of(right, asked)), "by_shot": right.mean(axis=0)}
    return {"late": late_by_set, "floors": floors}


def share_of(right, asked):
    """Share of the queries `asked` that are right; nan if none is asked."""
    return right[asked].mean() if asked.any() else np.nan


def clustered_error(right, asked, rows):
    """Standard error of share_of(right, asked), (sequences, shots) of tasks that all get the same
    `rows` rows of inputs, task by task.

    Queries of a row are as easy or hard together, in all tasks. With n_r of them in row r, h_r of
    which are right, and the share s: sqrt(k/(k - 1) sum_r (h_r - s n_r)^2) / sum_r n_r over the k
    rows that have some; nan for fewer than two."""
    by_row = (-1, rows, asked.shape[1])
    hits = (right & asked).reshape(by_row).sum(axis=(0, 2))
    count = asked.reshape(by_row).sum(axis=(0, 2))
    k = np.count_nonzero(count)
    if k < 2:
        return np.nan
    off = hits - hits.sum() / count.sum() * count
    return np.sqrt(k / (k - 1) * (off @ off)) / count.sum()


def watch(run, solved, rows):
    """Let the run measure o.o.d. accuracy on train inputs by whether ratio matching has an answer:
    at the last shot (ood_covered, ood_uncovered), and on all late shots where it has none, with its
    standard error (of `rows` rows of inputs); the latter also on rows by rule."""
    known = solved["known"][:, -1]

    def by_need(run, predicted):
        right = predicted["ood_train"] == run.sets["ood_train"].targets
        last = right[:, -1]
        result = {
            "ood_covered": share_of(last, known),
            "ood_uncovered": share_of(last, ~known),
            "uncovered": share_of(right, solved["uncovered"]),
            "uncovered_error": clustered_error(right, solved["uncovered"], rows),
        }
        for name, asked in solved["late"].items():
            result[f"{name}_late"] = share_of(predicted[name] == run.sets[name].targets, asked)
        return result

    run.extra = by_need


def fill_history(run):
    """nan in the rows of a checkpoint from before something was measured."""
    rows = len(run.history["step"])
    if rows:
        for name, value in run.measurements().items():
            unknown = np.full(np.shape(value), np.nan)
            run.history.setdefault(name, [unknown] * rows)


def elimination(p, tokens):
    """(sequences, shots) chance to be right of a learner that excludes answers, and guesses.

    z/x is a + b y/x: unless b = 0 it differs from direction to direction, so that what examples of
    other directions have is excluded; z/y likewise. Where it excludes every answer it is wrong."""
    triples = tokens.reshape(len(tokens), -1, 3)
    z = triples[..., 2]
    values = np.arange(p)
    left = np.ones((*z.shape, p), dtype=bool)
    for coordinate in (0, 1):
        x = triples[..., coordinate]
        inverse = inverses(p)[x]
        taken = (inverse * z % p)[..., None] == values
        taken &= (x > 0)[..., None]
        taken_before = np.cumsum(taken, axis=1) > taken
        scaled = inverse[..., None] * values % p
        excluded = np.take_along_axis(taken_before, scaled, axis=2)
        left &= ~excluded | (x == 0)[..., None]
    possible = np.take_along_axis(left, z[..., None], axis=2)[..., 0]
    return possible / np.maximum(left.sum(axis=2), 1)


def measured(history, solved):
    """(results, columns of the log, index of the best measurement)"""
    floors = solved["floors"]
    last = {name: history[f"{name}_accuracy"][:, -1] for name in SETS}
    best = int(last["ood_train"].argmax())
    results = {name: float(values[-1]) for name, values in last.items()}
    results["ood_best"] = float(last["ood_train"][best])
    results["ood_best_step"] = int(history["step"][best])
    results["ood_best_covered"] = float(history["ood_covered"][best])
    results["ood_best_uncovered"] = float(history["ood_uncovered"][best])
    results |= without_a_match(history, solved)
    log = {"step": history["step"], **last}
    for name, floor in floors.items():
        log[name] = history[f"{name}_late"]
        results[name] = float(log[name][-1])
        results[f"{name}_elimination"] = floor["late"]
        results[f"{name}_by_shot"] = history[f"{name}_accuracy"][-1].round(4).tolist()
        results[f"{name}_elimination_by_shot"] = floor["by_shot"].round(4).tolist()
    results["phase"] = ic.phase(*(float(last[name][-1]) for name in SETS))
    results["phase_at_best"] = ic.phase(*(float(last[name][best]) for name in SETS))
    results["k_shot"] = history["ood_train_accuracy"][best].round(4).tolist()
    for name in SOLVERS:
        results[name] = np.round(solved[name], 4).tolist()
    for name in (*SETS, *floors):
        log[f"{name}_loss"] = history[f"{name}_loss"][:, -1]
    for name in ("ood_covered", "ood_uncovered", "uncovered"):
        log[name] = history[name]
    return results, log, best


def on_fresh_rows(run, data, seed):
    """The late queries without a match once more, of the network as it is: on some FRESH sequences
    of held-out tasks and of rows of train inputs drawn freely, several times as many rows as in the
    sets that the run measures. Accuracies, and those of a learner that excludes answers, are of all
    of them, and of tasks with a, b != 0, where that learner has no wrong reason to exclude."""
    tasks = data.ood_tasks
    count = max(ic.QUESTIONS, FRESH // len(tasks))
    rng = generator(seed, "probes")
    data.sets(rng)  # other rows than these
    rows = data.draw_pairs(data.train_pool, count, rng)
    tokens = data.sequences(tasks, rows)
    batch = run.make_batch(tokens)
    right = run.predict(batch)[0] == batch.targets
    asked = ~matched(data.p, tokens)
    asked[:, : late(data.shots).start] = False
    both = np.repeat(tasks.all(axis=1), count)[:, None]
    excluding = elimination(data.p, tokens)
    return {
        "fresh": float(share_of(right, asked)),
        "fresh_error": float(clustered_error(right, asked, count)),
        "fresh_rows": count,
        "fresh_queries": int(asked.sum()),
        "fresh_a_b": float(share_of(right, asked & both)),
        "fresh_elimination": float(share_of(excluding, asked)),
        "fresh_elimination_a_b": float(share_of(excluding, asked & both)),
        "fresh_matched": float(share_of(right[:, late(data.shots)], ~asked[:, late(data.shots)])),
    }


def without_a_match(history, solved):
    """Of the late o.o.d. queries for which ratio matching has no answer: their number, accuracy at
    the end with its standard error over rows of inputs, the best one, those of elimination and of
    retrieval, which is never right here: two tasks agree on one line through 0, so that the
    pre-training task that agrees with an example is wrong off its line. To retrieve is to stay
    below chance, 1/p."""
    asked = solved["uncovered"]
    accuracies = history["uncovered"]
    known = np.flatnonzero(~np.isnan(accuracies))
    best = known[accuracies[known].argmax()] if len(known) else -1
    return {
        "uncovered": float(accuracies[-1]),
        "uncovered_error": float(history["uncovered_error"][-1]),
        "uncovered_queries": int(asked.sum()),
        "uncovered_elimination": solved["elimination"],
        "uncovered_retrieval": float(share_of(solved["retrieved"], asked)),
        "uncovered_best": float(accuracies[best]),
        "uncovered_best_step": int(history["step"][best]),
    }
