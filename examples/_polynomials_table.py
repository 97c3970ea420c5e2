"""The closing table of polynomials trained side by side."""


def percent(x):
    return "-" if x is None else f"{100 * x:.2f}"


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
