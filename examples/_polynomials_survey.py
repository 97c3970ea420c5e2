"""grok_polynomials.py --survey: the twelve rows of appendix C of arXiv 2406.03495, six polynomials
at p = 97 and p = 23, beside the paper's losses, accuracies and verdicts."""

import functools

import _memory as memory
from _polynomials_table import percent

from tinygrok import cli
from tinygrok.engine.rng import generator
from tinygrok.tasks.modular import addition

# Modulus -> sizes; the paper has width 5000, and says no number of steps.
SIZES = {97: {"width": 500, "steps": 600}, 23: {"width": 2000, "steps": 1000}}
QUICK = {97: {"width": 300, "steps": 150}, 23: {"width": 800, "steps": 200}}
# (polynomial, modulus) -> training loss, test loss, test accuracy in per cent of appendix C, width
# 5000; all training accuracies are 100. The product: figure 3.
PAPER = {
    ("n1*n2", 97): ("", "", "100"),
    ("(4*n1 + n2^2)^3", 97): ("0.000344", "0.000569", "100"),
    ("(4*n1 + n2^2)^3 + n1*n2", 97): ("0.001963", "0.011216", "2.27"),
    ("(2*n1 + 3*n2)^4", 97): ("0.000139", "0.000172", "100"),
    ("(2*n1 + 3*n2)^4 - n1^2", 97): ("0.001916", "0.011097", "3.93"),
    ("(5*n1^3 + 2*n2^4)^2", 97): ("0.000146", "0.000161", "100"),
    ("(5*n1^3 + 2*n2^4)^2 - n2", 97): ("0.001523", "0.006108", "72.32"),
    ("(4*n1 + n2^2)^3", 23): ("0.000143", "0.006274", "100"),
    ("(4*n1 + n2^2)^3 + n1*n2", 23): ("0.000147", "0.051866", "1.89"),
    ("(2*n1 + 3*n2)^4", 23): ("0.000093", "0.001010", "100"),
    ("(2*n1 + 3*n2)^4 - n1^2", 23): ("0.000132", "0.049618", "7.17"),
    ("(5*n1^3 + 2*n2^4)^2", 23): ("0.000056", "0.001004", "100"),
    ("(5*n1^3 + 2*n2^4)^2 - n2", 23): ("0.000150", "0.052047", "2.64"),
}
POLYNOMIALS = tuple(text for text, p in PAPER if p == 23)
LEARNT = 0.99  # test accuracy
SETTINGS = ("lr", "weight_decay", "train_frac", "seed", "seeds", "log_every", "dtype")
# What is kept of a row of the usual table.
KEPT = ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "chance")
KEPT += ("quotient_coverage", "accuracy_with_siblings", "accuracy_without")


def check(args):
    """Refuse what a survey would ignore."""
    if args.survey:
        cli.refuse_idle(args, "means nothing with --survey", "p", "width", "steps")
        if args.keep_every:
            raise cli.InputError("--keep-every means nothing with --survey")


def packs(args):
    """A pack a modulus, a point a polynomial."""
    common = {name: getattr(args, name) for name in SETTINGS}
    found = []
    for p, sizes in (QUICK if args.quick else SIZES).items():
        point = common | {"p": p} | sizes
        found.append([point | {"polynomial": text} for text in POLYNOMIALS])
    return found


def run(args, experiment, train):
    """The survey, to its files and table; an exit code where it did not get there.

    train   (flags, experiment, pack) -> a row of the usual table for every polynomial"""
    together = packs(args)
    for pack in together:  # refused before anything is written
        first = pack[0]
        networks = len(pack) * args.seeds
        sizes = memory.table(experiment.dev, first["p"], first["width"], networks)
        memory.require(experiment.dev, **sizes)
        addition(first["p"]).split(args.train_frac, generator(args.seed, "split"))
    experiment.open_sweep()
    work = functools.partial(train, args, experiment)
    results = experiment.sweep(together, work, None, "table", "finished")
    if results is None:
        return 1
    rows = {}
    for pack, found in zip(together, results, strict=True):
        for point, row in zip(pack, found, strict=True):
            rows[f"{point['polynomial']} mod {point['p']}"] = row_of(point, row)

    def figures(out):
        import _figures_grok_polynomials as plots

        plots.survey(rows, out / "survey.png")

    experiment.write(rows, None, figures)
    show(args, rows)
    experiment.list_files()
    return None


def row_of(point, found):
    """A row of the survey: ours, the paper's, and who calls it learnable."""
    row = {name: point[name] for name in ("polynomial", "p", "width", "steps")}
    for name in KEPT:
        value = found[name]
        row[name] = None if value is None else float(f"{value:.5g}")
    quartiles = "test_accuracy_quartiles"
    if quartiles in found:
        row[quartiles] = found[quartiles]
    names = ("paper_train_loss", "paper_test_loss", "paper_test_accuracy")
    row |= dict(zip(names, PAPER[point["polynomial"], point["p"]], strict=True))
    row["paper_learnable"] = row["paper_test_accuracy"] == "100"
    row["learnt"] = row["test_accuracy"] >= LEARNT
    row["of_no_form"] = found["excluded_sum"] and found["excluded_product"]
    return row


def show(args, rows):
    """The table, a part a modulus."""
    about = f"; medians of {args.seeds} seeds" if args.seeds > 1 else ""
    losses = f"{'train loss':>11}{'paper':>10}{'test loss':>11}{'paper':>10}"
    columns = f"{losses}{'test %':>8}{'paper':>7}{'chance':>8}   learnable: here, paper"
    for p in dict.fromkeys(row["p"] for row in rows.values()):
        of_p = [row for row in rows.values() if row["p"] == p]
        sizes = f"width {of_p[0]['width']} (paper: 5000), {of_p[0]['steps']} steps{about}"
        print(f"\np = {p}, {sizes}\n{'':<26}{columns}")
        for row in of_p:
            print(line(row))
    print("\nlearnable here: 99% of the unseen pairs are right; the paper: its accuracy is 100%")
    none = [row for row in rows.values() if row["of_no_form"]]
    same = all(row["of_no_form"] != row["paper_learnable"] for row in rows.values())
    which = ", those that the paper calls not learnable" if same else ""
    print(f"*: proved to be of no form h(g1(n1) + g2(n2)), h(g1(n1) g2(n2)): {len(none)}{which}")
    for name, row in rows.items():
        if row["of_no_form"] and row["test_accuracy"] > 0.1:
            print(siblings(name, row))


def line(row):
    """A row of the table."""
    mark = "*" if row["of_no_form"] else ""
    losses = ""
    for split in ("train", "test"):
        losses += f"{row[f'{split}_loss']:>11.6f}{row[f'paper_{split}_loss']:>10}"
    accuracy = f"{percent(row['test_accuracy']):>8}{row['paper_test_accuracy']:>7}"
    verdicts = ("yes" if row[name] else "no" for name in ("learnt", "paper_learnable"))
    chance = percent(row["chance"])
    return f"{row['polynomial'] + mark:<26}{losses}{accuracy}{chance:>8}   {', '.join(verdicts)}"


def siblings(name, row):
    """Why a table of no form is partly answered."""
    coverage = percent(row["quotient_coverage"])
    known = percent(row["accuracy_with_siblings"])
    unknown = percent(row["accuracy_without"])
    pairs = f"{coverage}% of its unseen pairs have an equal row or column in training"
    return f"{name}: {pairs}; of them {known}% are right, of the others {unknown}%"
