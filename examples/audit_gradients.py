"""Audit every handwritten gradient: differences and complex steps against backward, tensor by
tensor.

    python examples/audit_gradients.py                    # everything the library has
    python examples/audit_gradients.py --op softmax       # one operation: formulas, then entry by entry

Exit code 1 when a gradient is wrong. `--op` follows the Jacobian entry by entry where a tiny case
makes that readable."""

import time

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

from tinygrok.audit.cases import BUILDERS, cases
from tinygrok.audit.checker import JACOBIAN_SIZE, Case, audit, cpu_device, jacobian, table
from tinygrok.engine.errors import InputError


def arguments(argv=None):
    p = cli.parser("audit_gradients", __doc__.splitlines()[0])
    p.add_argument(
        "--op",
        default="",
        metavar="NAME",
        help="audit the operations whose name contains NAME, with formulas",
    )
    p.add_argument(
        "--directions-seed",
        type=cli.integer(0),
        default=0,
        help="seed of cotangents and directions",
    )
    p.set_defaults(dtype="float64")
    return cli.parse(p, argv)


def entry_by_entry(case: Case) -> None:
    """Inputs, outputs, and every entry of the Jacobian by backward and by differences."""
    with np.printoptions(precision=6, suppress=True, linewidth=120):
        for name, x in case.inputs.items():
            print(f"\ninput {name} =\n{x}")
        outputs = case.forward(case.inputs)
        for name, y in outputs.items():
            print(f"\noutput {name} =\n{y}")
    size = sum(np.size(y) for y in outputs.values())
    for name, x in case.inputs.items():
        if name in case.frozen or x.size * size > JACOBIAN_SIZE:
            print(
                f"\n{name}: {x.size} entries times {size} outputs, too many to list; see the table below"
            )
            continue
        claimed, measured = jacobian(case, name)
        print(
            f"\n{name}: entries that are 0 are not listed\n{'derivative':<34}{'backward':>16}{'differences':>16}{'gap':>10}"
        )
        labels = [
            f"{k}[{','.join(map(str, i))}]"
            for k, y in outputs.items()
            for i in np.ndindex(np.shape(y))
        ]
        for r, output in enumerate(labels):
            for c, entry in enumerate(np.ndindex(x.shape)):
                if claimed[r, c] == measured[r, c] == 0:
                    continue
                label = f"d {output} / d {name}[{','.join(map(str, entry))}]"
                print(
                    f"{label:<34}{claimed[r, c]:>16.10f}{measured[r, c]:>16.10f}{abs(claimed[r, c] - measured[r, c]):>10.1e}"
                )


def main(argv=None):
    args = arguments(argv)
    chosen = cases(args.op)
    if not chosen:
        raise InputError(f"--op {args.op!r}: no such operation; there are {', '.join(BUILDERS)}")
    if args.dtype != "float64" or args.device not in ("auto", "cpu"):
        raise InputError(
            "the audit runs in float64 on the CPU: rounding of float32 would hide an error of one part in a million"
        )
    out = cli.output_folder(args)
    dev = cpu_device()
    dev.reason = f"CPU, NumPy {np.__version__}, float64 and complex128"
    began = time.perf_counter()
    rows = []
    for case in chosen:
        if args.op:
            print(f"{'=' * 100}\n{case.name}\n\n{case.formulas()}")
            entry_by_entry(case)
            print()
        rows += audit(case, args.directions_seed)
    print(table(rows))
    failed = [r for r in rows if not r.passed]
    results = {
        "operations": len(chosen),
        "checked": len(rows),
        "failed": len(failed),
        "max_relative_error": max(r.error for r in rows),
        "max_relative_error_complex_step": max(
            (r.error for r in rows if r.method == "complex step"), default=None
        ),
    }
    seconds = time.perf_counter() - began
    cli.write_run(out, args, dev, seconds, results)
    print(
        f"\n{len(rows)} checks of {len(chosen)} operations in {seconds:.1f} s, {len(failed)} failed; results in {out}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    cli.main(main)
