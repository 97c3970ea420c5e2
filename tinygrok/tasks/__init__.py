"""Data sets of the papers, on the host in NumPy; TASKS names the functions of two numbers.

A new task is a function p -> ModularTask, a line here, and a row in tests/test_tasks.py."""

from collections.abc import Callable

from .groups import composition, dihedral
from .modular import ModularTask, addition, division, multiplication, subtraction

TASKS: dict[str, Callable[..., ModularTask]] = {
    "addition": addition,
    "subtraction": subtraction,
    "multiplication": multiplication,
    "division": division,
    "composition": composition,
    "dihedral": dihedral,
}
