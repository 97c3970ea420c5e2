"""Write an exercise: a file with a forward in plain NumPy and an empty backward, for you to fill.

    python examples/exercise.py --list                       # twelve, in order of difficulty
    python examples/exercise.py softmax                      # writes softmax.py; or by number: 5
    python examples/audit_gradients.py --file softmax.py     # marks it

The file is your own code from then on, and marking it runs it. A file that exists is never
overwritten. The solutions are the library's own functions: the marking says where they stand, once
all is right.
"""

import argparse
import inspect
import os
import shlex
import sys
from pathlib import Path

from tinygrok import cli  # first: it sets up BLAS threads before NumPy loads

import _exercises as exercises  # isort: skip
from _exercises_kinds import Exercise  # isort: skip

from tinygrok.engine.errors import InputError

HEADER = '''"""Exercise {number}, {name} ({level}).

{learnt}.

Write {asked}, then

    {command}

marks it. This file is your own code, and marking it runs it. NumPy is all that it needs; leave what
is given as it stands, but for the cache, into which you may put more.

In a backward dX is the gradient of a loss L by X, of the shape of X; dy comes in, whatever L is.
Letters in brackets are shapes.
"""

import numpy as np

EXERCISE = "{name}"  # which one it is, for the marking
'''


def arguments(argv=None):
    p = cli.bare_parser("exercise", __doc__)
    p.epilog = (__doc__ or "").partition("\n\n")[2]
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    add = p.add_argument
    add("name", nargs="?", metavar="NAME", help="the exercise, by name or number")
    add("--list", action="store_true", help="show all exercises")
    add("--out", type=Path, metavar="PATH", help="file or folder to write to (default: NAME.py)")
    return p.parse_args(argv)


def print_list() -> None:
    for place, exercise in enumerate(exercises.ORDERED, 1):
        level = exercises.LEVELS[exercise.level]
        print(f"{place:>2}  {exercise.name:<14}{level:<8}{exercise.learnt}")


def text(exercise: Exercise, path: Path) -> str:
    """What is written into the file."""
    header = HEADER.format(
        number=exercises.number(exercise),
        name=exercise.name,
        level=exercises.LEVELS[exercise.level],
        learnt=exercise.learnt[0].upper() + exercise.learnt[1:],
        asked=exercise.asked.__name__,
        command=command(path),
    )
    functions = [exercise.forward, exercise.asked]
    sources = [inspect.getsource(function) for function in functions if function is not None]
    return "\n\n".join([header, *sources])


def command(path: Path) -> str:
    """What marks a file: the audit beside this script."""
    audit = Path(sys.argv[0]).with_name("audit_gradients.py")
    return shlex.join(["python", audit.as_posix(), "--file", path.as_posix()])


def place(exercise: Exercise, out: Path | None) -> Path:
    """The file to write."""
    if out is None:
        return Path(f"{exercise.name}.py")
    path = out / f"{exercise.name}.py" if os.path.isdir(out) else out
    if path.suffix != ".py":
        raise InputError(f"--out {out}: neither a folder nor the name of a Python file, NAME.py")
    return path


def main(argv=None):
    args = arguments(argv)
    if args.list or args.name is None:
        print_list()
        return 0
    exercise = exercises.find(args.name)
    path = place(exercise, args.out)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text(exercise, path))
    except FileExistsError:
        advice = "it stays as it is; --out PATH writes to another file"
        raise InputError(f"{path} exists: {advice}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    print(f"wrote {path}: write {exercise.asked.__name__}, then")
    print(f"  {command(path)}")
    return 0


if __name__ == "__main__":
    cli.main(main)
