"""The closing table of polynomials trained side by side, and what it says of their answers."""

from tinygrok.analytic.trained import excluded, majority_share, siblings


def percent(x):
    return "-" if x is None else f"{100 * x:.2f}"


def answers(run, e, task, train, test):
    """A row of the table: what the network answers."""
    history = run.history
    table = task.table()
    hits = run.evaluation.predicted[e][test] == table.ravel()[test]
    known = siblings(table, train, test) > 0
    return {
        "test_accuracy": float(hits.mean()),
        "train_accuracy": float(history["train_accuracy"][-1][e]),
        "train_loss": float(history["train_loss"][-1][e]),
        "test_loss": float(history["test_loss"][-1][e]),
        "chance": majority_share(table.ravel()),
        "quotient_coverage": float(known.mean()),
        "accuracy_with_siblings": float(hits[known].mean()) if known.any() else None,
        "accuracy_without": float(hits[~known].mean()) if not known.all() else None,
        "learnable": task.circle is not None,
        "excluded_sum": excluded(table, "add"),
        "excluded_product": excluded(table, "multiply"),
    }


def show(rows):
    columns = f"{'train':>7}{'test':>8}{'paper':>8}{'chance':>8}"
    print(f"\n{'accuracy in per cent':<26}{columns}   siblings: test / with / without   not")
    for text, row in rows.items():
        train = percent(row["train_accuracy"])
        test = percent(row["test_accuracy"])
        chance = percent(row["chance"])
        parts = ("quotient_coverage", "accuracy_with_siblings", "accuracy_without")
        split = " / ".join(percent(row[name]) for name in parts)
        forms = " ".join(name for name in ("sum", "product") if row[f"excluded_{name}"])
        accuracies = f"{train:>7}{test:>8}{row['paper']:>8}{chance:>8}"
        print(f"{text:<26}{accuracies}   {split:<33}{forms}")
    print(
        "siblings: share of the test inputs that have an equal row and column in training, "
        "accuracy with and without them"
    )
    print("not: proved to be of no form h(g1(n1) + g2(n2)) (sum), h(g1(n1) g2(n2)) (product)")
    columns = f"{'weights explained':>20}{'accuracy as waves':>22}"
    print(f"\n{'waves, before -> after':<26}{columns}   common freq.   phase rms    IPR")
    for text, row in rows.items():
        if row["learnable"]:
            explained = f"{row['explained_before']:>11.3f} -> {row['explained_after']:.3f}"
            before = percent(row["waves_accuracy_before"])
            after = percent(row["waves_accuracy"])
            ipr = "-" if row["ipr"] is None else f"{row['ipr']:.2f}"
            rest = f"{row['common_frequency']:>15.3f}{row['phase_residual_rms']:>12.3f}{ipr:>7}"
            print(f"{text:<26}{explained}{before:>12} -> {after:>6}{rest}")
