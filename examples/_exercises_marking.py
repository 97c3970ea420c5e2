"""Marks an exercise: runs the user's file in every case, against what is measured."""

import copy
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from _exercises import LEVELS, ORDERED, find, number
from _exercises_hints import hint
from _exercises_kinds import Exercise, Found, called, close, listed
from _own_file import refusing

from tinygrok.audit.case import replaced
from tinygrok.engine.errors import InputError

SHOWN = 5  # wrong entries
EMPTY = np.empty
EMPTY_LIKE = np.empty_like


class NotWritten(Exception):
    """The function asked for raises NotImplementedError, as it was given."""


def mark(path: Path, names: dict) -> int:
    """Print the verdict on a file that defines these names; 0 if all is right, else 1."""
    exercise = _exercise(path, names)
    print(f"{path}: exercise {number(exercise)}, {exercise.name}; your code is run as it is\n")
    given = exercise.forward and _function(path, names, exercise.forward)
    paper = _Paper(path, exercise, _function(path, names, exercise.asked), given)
    try:
        # What is never written is nan, and not what happens to lie in memory.
        with replaced({(np, "empty"): _unwritten, (np, "empty_like"): _unwritten_like}):
            cases = [paper.run(n) for n in range(len(exercise.sizes))]
    except NotWritten:
        print(f"{exercise.asked.__name__} is not written yet: it raises NotImplementedError")
        return 1
    by_tensor = [list(found) for found in zip(*cases, strict=True)]
    right = all(one.right for found in by_tensor for one in found)
    print(f"{'':<24}{'shape':<12}{'error':>9}  verdict")
    for found in by_tensor:
        _print_row(found)
    for found in by_tensor:
        _print_wrong(exercise, found)
    for line in paper.remarks:
        print(f"\n{line}")
    if not right or paper.remarks:
        return 1
    _print_end(exercise)
    return 0


def _exercise(path: Path, names: dict) -> Exercise:
    with refusing(path):
        return find(str(names["EXERCISE"]))


def _function(path: Path, names: dict, given: Callable) -> Callable:
    function = names.get(given.__name__)
    if not callable(function):
        raise InputError(f"{path}: there is no function {given.__name__}")
    return function


def _unwritten(*args, **options) -> np.ndarray:
    return _filled(EMPTY(*args, **options))


def _unwritten_like(*args, **options) -> np.ndarray:
    return _filled(EMPTY_LIKE(*args, **options))


def _filled(x: np.ndarray) -> np.ndarray:
    if x.dtype.kind in "fc":
        x.fill(np.nan)
    return x


class _Paper:
    """A user's functions, run in one case after the other.

    remarks   what is wrong and is no entry of a result
    """

    def __init__(self, path: Path, exercise: Exercise, asked: Callable, forward: Callable | None):
        self.path = path
        self.exercise = exercise
        self.asked = asked
        self.forward = forward
        self.remarks: list[str] = []

    def run(self, number: int) -> list[Found]:
        """What is found of every tensor in a case."""
        exercise = self.exercise
        with refusing(self.path):
            arguments = exercise.arguments(self.forward, exercise.case(number))
        answer = exercise.answer(self._checked, arguments)
        with redirect_stdout(StringIO()):
            again = exercise.answer(self._checked, arguments)
        if not all(map(_equal, answer, again)):
            self._remark("called twice, it returns other numbers: it keeps something")
        # The oracle runs the forward often: what it prints then is not of interest.
        with redirect_stdout(StringIO()), refusing(self.path):
            case = exercise.case(number)
            expected = exercise.expected(self.forward, case, arguments)
        original = exercise.arguments(exercise.forward, exercise.case(number))
        if self.forward is not None:
            self._check_forward(number)
        wrong = exercise.known(original)
        others = {k: x.value for k, x in zip(exercise.returns, expected, strict=True)}
        found = []
        for i, name in enumerate(exercise.returns):
            known = {text: results[i] for text, results in wrong if results[i] is not None}
            known = {text: x for text, x in known.items() if not close(x, others[name])}
            x = expected[i]
            found.append(Found(name, case, answer[i], x.value, x.tolerance, others, known))
        return found

    def _remark(self, text: str) -> None:
        line = f"{self.exercise.asked.__name__} WRONG: {text}"
        if line not in self.remarks:
            self.remarks.append(line)

    def _checked(self, *arguments) -> tuple[np.ndarray, ...]:
        """The results of the function asked for, as arrays of floats."""
        arguments = copy.deepcopy(arguments)
        before = copy.deepcopy(arguments)
        try:
            with refusing(self.path):
                answer = self.asked(*arguments)
        except InputError as error:
            if isinstance(error.__cause__, NotImplementedError):
                raise NotWritten from error
            raise
        if not all(map(_equal, _arrays(before), _arrays(arguments))):
            self._remark("it changes arrays that it gets: write into new ones")
        results = tuple(answer) if isinstance(answer, tuple | list) else (answer,)
        if len(results) != len(self.exercise.returns):
            raise InputError(f"{self.path}: {self._must_return()}, not {len(results)} of them")
        return tuple(map(self._array, results, self.exercise.returns))

    def _must_return(self) -> str:
        returns = ", ".join(self.exercise.returns)
        returns = f"({returns})" if "," in returns else returns
        return f"{self.exercise.asked.__name__} must return {returns}"

    def _array(self, x, name: str) -> np.ndarray:
        with refusing(self.path):
            array = np.asarray(x)
        if array.dtype.kind not in "fiub":
            what = "None" if x is None else f"{type(x).__name__} of {array.dtype}"
            raise InputError(f"{self.path}: {self._must_return()}, and {name} is {what}")
        return array.astype(float)

    def _check_forward(self, number: int) -> None:
        """The forward gives what the one gives that was written into the file."""
        results = []
        for forward in (self.forward, self.exercise.forward):
            case = self.exercise.case(number)
            with refusing(self.path):
                outputs, _ = called(forward, case.tensors, case.settings)
                results.append([np.asarray(y) for y in listed(outputs)])
        mine, given = results
        if len(mine) != len(given) or not all(map(close, mine, given)):
            name = self.exercise.forward.__name__
            text = "it gives other numbers than the one that was given; leave it as it was"
            line = f"{name} WRONG: {text}"
            if line not in self.remarks:
                self.remarks.append(line)


def _arrays(x) -> Iterator[np.ndarray]:
    """The arrays and numbers in tuples and lists."""
    if isinstance(x, tuple | list):
        for part in x:
            yield from _arrays(part)
    else:
        yield np.asarray(x)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


# -- what is printed -------------------------------------------------------------------------------


def _print_row(found: list[Found]) -> None:
    error = max(one.error for one in found)
    shape = "x".join(map(str, found[0].want.shape)) or "number"
    verdict = "right" if all(one.right for one in found) else "WRONG"
    shown = "shape" if np.isinf(error) else f"{error:.1e}"
    print(f"{found[0].name:<24}{shape:<12}{shown:>9}  {verdict}")


def _print_wrong(exercise: Exercise, found: list[Found]) -> None:
    wrong = [one for one in found if not one.right]
    if not wrong:
        return
    first = wrong[0]
    sizes = ", ".join(f"{name} = {size}" for name, size in first.case.sizes.items())
    if first.got.shape != first.want.shape:
        print(f"\n{first.name} has shape {first.got.shape}, expected {first.want.shape} ({sizes})")
    else:
        places = np.argwhere(first.entries()).tolist()
        count = f"{len(places)} of {first.want.size} entries are wrong"
        print(f"\n{first.name}: {count} ({sizes}); the first:")
        for place in places[:SHOWN]:
            at = tuple(place)
            label = f"{first.name}[{','.join(map(str, place))}]"
            print(f"  {label:<16}yours {first.got[at]:>18.12g}   expected {first.want[at]:>18.12g}")
    print(f"hint: {hint(exercise, wrong)}")


def _print_end(exercise: Exercise) -> None:
    print(f"\nAll right. The library has it as {exercise.solution}.")
    place = ORDERED.index(exercise) + 1
    if place < len(ORDERED):
        after = ORDERED[place]
        script = Path(sys.argv[0]).with_name("exercise.py")
        command = shlex.join(["python", script.as_posix(), after.name])
        print(f"Next, {LEVELS[after.level]}: {after.learnt}\n  {command}")
