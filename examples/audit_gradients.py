"""Audit every handwritten gradient against complex steps and differences, tensor by tensor.

    python examples/audit_gradients.py                    # everything the library has
    python examples/audit_gradients.py --op softmax       # one operation, entry by entry
    python examples/audit_gradients.py --file mine.py     # pairs of your own, or an exercise

Exit code 1 when a gradient is wrong. Every operation is one line, the check that came closest to
its tolerance, or those that failed; `--op` prints all checks, the formulas, the plain version of a
fast operation (examples/_reference.py), and, where a tiny case makes that readable, every entry
of the Jacobian.

A file of your own has pairs NAME_forward(dev, x, ...) -> (y, cache) and
NAME_backward(dev, dy, cache, ...) -> dx, which writes the gradients of parameters into the arrays
that it gets after the cache, in the order of forward (tinygrok/ops/__init__.py). Where the library
has an operation NAME (linear, softmax, layernorm, gelu, ...), its cases are run with your pair, and
your results are held against the library's. For another NAME the file states the shapes:

    cube_inputs = {"x": (3, 4)}

    def cube_forward(dev, x):
        return x**3, (x,)

    def cube_backward(dev, dy, cache):
        (x,) = cache
        return 3 * x**2 * dy

An exercise is a file that examples/exercise.py has written. It is marked: the verdict on every
tensor, the first wrong entries with what was expected, and a hint where the numbers are those of a
known kind of error. Exit code 1 when something is wrong or not written yet; nothing is saved.

Either file is your own code, and is run as such, with all that it may do; only its time is limited
(--seconds). A file that cannot be run, or a pair that gives gradients of wrong shapes, is refused
by one line, exit code 2.
"""

import argparse
import inspect
import textwrap
import time
from pathlib import Path

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import numpy as np  # isort: skip

import _exercises_marking as marking
import _own_file as own_file
import _own_pairs as own_pairs
import _reference

from tinygrok.audit.case import COMPILED, Case, cpu_device
from tinygrok.audit.cases import BUILDERS, cases
from tinygrok.audit.checker import Row, along, audit, central_difference, complex_step, table
from tinygrok.engine import compiled
from tinygrok.engine.errors import InputError

JACOBIAN_SIZE = 64  # inputs times outputs up to which every entry is listed


def arguments(argv=None):
    p = cli.parser("audit_gradients", __doc__)
    p.epilog = (__doc__ or "").partition("\n\n")[2]
    # The help of all examples, with the lines of the epilog as they stand.
    formatters = (p.formatter_class, argparse.RawDescriptionHelpFormatter)
    p.formatter_class = type("Help", formatters, {})
    add = p.add_argument
    op = "audit the operations whose name contains NAME, with formulas"
    own = "audit pairs NAME_forward, NAME_backward of this file, or mark the exercise in it"
    limit = "time limit of --file"
    seed = "seed of cotangents and directions"
    add("--op", default="", metavar="NAME", help=op)
    add("--file", type=Path, metavar="PATH", help=own)
    add("--seconds", type=cli.positive(), default=60.0, help=limit)
    add("--directions-seed", type=cli.integer(0), default=0, help=seed)
    p.set_defaults(dtype="float64")
    args = cli.parse(p, argv)
    if args.file is not None:
        cli.refuse_idle(args, "is for the library's own kernels, without --file", "kernels")
    if args.dtype != "float64" or args.device not in ("auto", "cpu"):
        raise InputError(
            "the audit runs in float64 on the CPU: "
            "rounding of float32 would hide an error of one part in a million"
        )
    return args


def print_sources(case: Case) -> None:
    """Formulas of a case, and the plain versions of its functions where there are some."""
    print(f"{'=' * 100}\n{case.name}")
    for function in case.source:
        formulas = textwrap.indent(inspect.getdoc(function) or "", "    ")
        print(f"\n{function.__name__}\n{formulas}")
    if case.notes:
        print(f"\n{case.notes}")
    plain = [getattr(_reference, function.__name__, None) for function in case.source]
    texts = [inspect.getsource(function) for function in plain if function is not None]
    if texts:
        print("\nThe plain version, examples/_reference.py:\n")
        print("\n\n".join(texts).rstrip())


def print_values(case: Case) -> None:
    """Inputs and output."""
    with np.printoptions(precision=6, suppress=True, linewidth=120, threshold=100):
        for name, x in case.inputs.items():
            print(f"\ninput {name} =\n{x}")
        print(f"\noutput y =\n{case.forward(case.inputs)}")


def units(shape: tuple) -> np.ndarray:
    """Arrays of one 1 among zeros."""
    size = int(np.prod(shape))
    return np.eye(size).reshape(size, *shape)


def print_entries(case: Case, name: str, y: np.ndarray) -> None:
    """Every entry of the Jacobian dy/dx of one tensor x, by backward and as measured."""
    x = case.inputs[name]
    if x.size * y.size > JACOBIAN_SIZE:
        size = f"{x.size} entries times {y.size} outputs"
        print(f"\n{name}: {size}, too many to list; see the table below")
        return
    slope = complex_step if case.analytic else central_difference
    print(f"\n{name}: entries that are 0 are not listed")
    print(f"{'derivative':<34}{'backward':>16}{'measured':>16}{'gap':>10}")
    for i, dy in zip(np.ndindex(y.shape), units(y.shape), strict=True):
        claimed = np.asarray(case.backward(case.inputs, dy)[name])
        for j, d in zip(np.ndindex(x.shape), units(x.shape), strict=True):
            a = float(claimed[j])
            b = float(slope(along(case, name, dy, d)))
            if a or b:
                label = f"d {entry('y', i)} / d {entry(name, j)}"
                print(f"{label:<34}{a:>16.10f}{b:>16.10f}{abs(a - b):>10.1e}")


def entry(name: str, index: tuple) -> str:
    return f"{name}[{','.join(map(str, index))}]"


def print_case(case: Case) -> None:
    print_sources(case)
    print_values(case)
    for name in case.inputs:
        print_entries(case, name, np.asarray(case.forward(case.inputs)))
    print()


def worst(rows: list[Row]) -> list[Row]:
    """The rows of a case that failed, or else the one that came closest to its tolerance."""
    failed = [row for row in rows if not row.passed]
    return failed or [max(rows, key=lambda row: row.error / max(row.tolerance, 1e-300))]


def choose(args, own: list[Case] | None) -> list[Case]:
    """The library's cases, or those of the user's file, by name."""
    if own is None:
        chosen = cases(args.op)
        names = list(BUILDERS)
    else:
        chosen = [case for case in own if args.op in case.name]
        names = [case.name for case in own]
    if not chosen:
        raise InputError(f"--op {args.op!r}: no such operation; there are {', '.join(names)}")
    return chosen


def report(args, own: list[Case] | None = None) -> int:
    """Audit the library's cases, or those of the user's file; print and save what is found."""
    began = time.perf_counter()
    chosen = choose(args, own)
    dev = cpu_device()
    dev.reason = f"CPU, NumPy {np.__version__}, float64 and complex128"
    if args.kernels == "compiled":
        loops, args.kernels, which = compiled.load()
        COMPILED.update(loops)
        print(which)
    experiment = cli.Experiment(args, dev)
    out = experiment.open()
    rows = []
    shown = []
    for case in chosen:
        if args.op:
            print_case(case)
        if own is None:
            found = audit(case, args.directions_seed)
        else:
            found = own_pairs.audited(args.file, case, args.directions_seed)
        rows += found
        shown += found if args.op or own else worst(found)
    print(table(shown))
    failed = [r for r in rows if not r.passed]
    double = [r.error for r in rows if r.method != "float32"]
    complex_steps = [r.error for r in rows if r.method == "complex step"]
    results = {
        "operations": len(chosen),
        "checked": len(rows),
        "failed": len(failed),
        "max_relative_error": max(double),
        "max_relative_error_complex_step": max(complex_steps, default=None),
    }
    experiment.write(results)
    seconds = time.perf_counter() - began
    done = f"{len(rows)} checks of {len(chosen)} operations in {seconds:.1f} s"
    print(f"\n{done}, {len(failed)} failed; results in {out}")
    return 1 if failed else 0


def own_report(args) -> int:
    """Run the user's file, and mark the exercise in it, or audit its pairs."""
    names = own_file.load(args.file)
    if "EXERCISE" not in names:
        return report(args, own_pairs.cases(args.file, names))
    if args.op:
        raise InputError(f"--op is for pairs; {args.file} is an exercise, and is marked as a whole")
    return marking.mark(args.file, names)


def main(argv=None):
    args = arguments(argv)
    if args.file is None:
        return report(args)
    return own_file.in_process(args.file, args.seconds, own_report, args)


if __name__ == "__main__":
    cli.main(main)
