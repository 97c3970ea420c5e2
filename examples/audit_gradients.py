"""Audit every handwritten gradient against differences and complex steps, tensor by tensor.

    python examples/audit_gradients.py                    # everything the library has
    python examples/audit_gradients.py --op softmax       # one operation, entry by entry

Exit code 1 when a gradient is wrong. `--op` prints the formulas, the plain version of a fast
operation (tinygrok/ops/reference.py), and, where a tiny case makes that readable, every entry of
the Jacobian.
"""

import time

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import inspect  # isort: skip

import numpy as np

from tinygrok.audit.cases import BUILDERS, cases
from tinygrok.audit.checker import JACOBIAN_SIZE, Case, audit, cpu_device, jacobian, table
from tinygrok.engine.errors import InputError
from tinygrok.ops import reference


def arguments(argv=None):
    p = cli.parser("audit_gradients", __doc__.splitlines()[0])
    add = p.add_argument
    op = "audit the operations whose name contains NAME, with formulas"
    seed = "seed of cotangents and directions"
    add("--op", default="", metavar="NAME", help=op)
    add("--directions-seed", type=cli.integer(0), default=0, help=seed)
    p.set_defaults(dtype="float64")
    return cli.parse(p, argv)


def print_sources(case: Case) -> None:
    """Formulas of a case, and the plain versions of its functions where there are some."""
    print(f"{'=' * 100}\n{case.name}\n\n{case.formulas()}")
    plain = [getattr(reference, function.__name__, None) for function in case.source]
    texts = [inspect.getsource(function) for function in plain if function is not None]
    if texts:
        print("\nThe plain version, tinygrok/ops/reference.py:\n")
        print("\n\n".join(texts).rstrip())


def print_values(case: Case) -> None:
    """Inputs and outputs."""
    with np.printoptions(precision=6, suppress=True, linewidth=120):
        for name, x in case.inputs.items():
            print(f"\ninput {name} =\n{x}")
        for name, y in case.forward(case.inputs).items():
            print(f"\noutput {name} =\n{y}")


def entry(name: str, index: tuple) -> str:
    return f"{name}[{','.join(map(str, index))}]"


def print_entries(case: Case) -> None:
    """Every entry of the Jacobian by backward and by differences, of the tensors that are small."""
    labels = []
    for name, y in case.forward(case.inputs).items():
        labels += [entry(name, index) for index in np.ndindex(np.shape(y))]
    for name, x in case.inputs.items():
        if x.size * len(labels) > JACOBIAN_SIZE:
            size = f"{x.size} entries times {len(labels)} outputs"
            print(f"\n{name}: {size}, too many to list; see the table below")
            continue
        print(f"\n{name}: entries that are 0 are not listed")
        print(f"{'derivative':<34}{'backward':>16}{'differences':>16}{'gap':>10}")
        claimed, measured = jacobian(case, name)
        for r, output in enumerate(labels):
            for c, index in enumerate(np.ndindex(x.shape)):
                a = claimed[r, c]
                b = measured[r, c]
                if a or b:
                    label = f"d {output} / d {entry(name, index)}"
                    print(f"{label:<34}{a:>16.10f}{b:>16.10f}{abs(a - b):>10.1e}")


def main(argv=None):
    args = arguments(argv)
    chosen = cases(args.op)
    if not chosen:
        raise InputError(f"--op {args.op!r}: no such operation; there are {', '.join(BUILDERS)}")
    if args.dtype != "float64" or args.device not in ("auto", "cpu"):
        raise InputError(
            "the audit runs in float64 on the CPU: "
            "rounding of float32 would hide an error of one part in a million"
        )
    dev = cpu_device()
    dev.reason = f"CPU, NumPy {np.__version__}, float64 and complex128"
    experiment = cli.Experiment(args, dev)
    out = experiment.open()
    began = time.perf_counter()
    rows = []
    for case in chosen:
        if args.op:
            print_sources(case)
            print_values(case)
            print_entries(case)
            print()
        rows += audit(case, args.directions_seed)
    print(table(rows))
    failed = [r for r in rows if not r.passed]
    complex_steps = [r.error for r in rows if r.method == "complex step"]
    results = {
        "operations": len(chosen),
        "checked": len(rows),
        "failed": len(failed),
        "max_relative_error": max(r.error for r in rows),
        "max_relative_error_complex_step": max(complex_steps, default=None),
    }
    experiment.write(results)
    seconds = time.perf_counter() - began
    done = f"{len(rows)} checks of {len(chosen)} operations in {seconds:.1f} s"
    print(f"\n{done}, {len(failed)} failed; results in {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.main(main)
