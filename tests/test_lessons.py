"""The lessons: notebooks that run from a clean kernel, empty as a student finds them and filled in.

python tests/test_lessons.py clears outputs and metadata of all of them, as git holds them."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LESSONS = sorted((ROOT / "examples" / "lessons").glob("*.ipynb"))
ALLOWED = {"numpy", "matplotlib", "tinygrok", *sys.stdlib_module_names}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
METADATA = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
OPENING = ("**What you will know at the end.**", "**What you need.**", "**How long.**")
SECONDS = 60  # of processor time for a lesson: half a minute of a machine with two cores
# Runs a notebook in a process of its own: what the kernel's packages warn of is none of ours.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
path, folder = sys.argv[1:]
notebook = nbformat.read(path, 4)
resources = {"metadata": {"path": folder}}
NotebookClient(notebook, kernel_name="python3", timeout=600, resources=resources).execute()
nbformat.write(notebook, path)
"""

every_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


# -- a notebook and its answers --------------------------------------------------------------------


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def written(notebook):
    """The text of a notebook in git: without outputs, indented so that it diffs well."""
    cells = []
    for cell in notebook["cells"]:
        empty = {"metadata": {}}
        if cell["cell_type"] == "code":
            empty |= {"execution_count": None, "outputs": []}
        cells.append(cell | empty)
    cleared = notebook | {"cells": cells, "metadata": METADATA}
    return json.dumps(cleared, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def texts(notebook, kind):
    """{id: text} of the cells of a kind, in order."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == kind]
    return {cell["id"]: "".join(cell["source"]) for cell in cells}


def answers(path):
    """{question: its text} of the lecturer's page of a lesson, in order."""
    number = path.name.partition("_")[0]
    page = path.with_name(f"{number}_answers.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (\d+\.\d+)$", page, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def solution(answer):
    """The code that fills a question's cell; None for a question in words."""
    blocks = re.findall(r"^```python\n(.*?)\n```$", answer, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) <= 1
    return blocks[0] if blocks else None


def to_fill(notebook):
    """The questions with a cell to fill, in order."""
    turns = [name for name in texts(notebook, "code") if name.startswith("turn-")]
    return [name.removeprefix("turn-").replace("-", ".") for name in turns]


# -- how it is written -----------------------------------------------------------------------------


def test_there_are_lessons():
    assert LESSONS


@every_lesson
def test_git_holds_no_outputs(path):
    """If this fails: python tests/test_lessons.py"""
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert path.read_text(encoding="utf-8") == written(notebook)
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch("[a-z0-9-]+", name)] == []


@every_lesson
def test_the_opening_says_what_and_how_long(path):
    notebook = read(path)
    first = texts(notebook, "markdown")["title"]
    assert notebook["cells"][0]["id"] == "title"
    assert first.startswith(f"# Lesson {path.name[0]}: ")
    assert [start for start in OPENING if f"\n\n{start}" not in first] == []


@every_lesson
def test_imports_are_few(path):
    """NumPy, matplotlib, tinygrok and the standard library; nothing for a notebook only."""
    for name, text in texts(read(path), "code").items():
        for node in ast.walk(ast.parse(text)):  # %magic and !shell are no Python
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            strangers = {module.partition(".")[0] for module in modules} - ALLOWED
            assert not strangers, name


@every_lesson
def test_questions_are_numbered_and_answered(path):
    """Question, cell to fill, its check; every question has an answer, code where it is to fill."""
    notebook = read(path)
    names = [cell["id"] for cell in notebook["cells"]]
    code = texts(notebook, "code")
    prose = texts(notebook, "markdown")
    asked = [name for name in names if name.startswith("q-")]
    numbers = [name.removeprefix("q-").replace("-", ".") for name in asked]
    assert numbers == [f"{path.name[0]}.{k}" for k in range(1, len(asked) + 1)]
    page = answers(path)
    assert list(page) == numbers
    filled = to_fill(notebook)
    assert 0 < len(filled) < len(numbers) + 1
    for name, number in zip(asked, numbers, strict=True):
        assert prose[name].startswith(f"**Question {number}.**")
        assert (solution(page[number]) is not None) == (number in filled), number
        if number in filled:
            turn, check = (name.replace("q-", kind) for kind in ("turn-", "check-"))
            place = names.index(name)
            assert names[place : place + 3] == [name, turn, check]
            assert code[turn].startswith("# your turn: ")
            assert code[check].count(f'check("{number}", ') == 1


@every_lesson
def test_check_is_the_same_everywhere(path):
    cells = [texts(read(other), "code")["check"] for other in LESSONS]
    assert texts(read(path), "code")["check"] == cells[0]


# -- from a clean kernel ---------------------------------------------------------------------------


def execute(notebook, path, folder):
    """The notebook with its outputs, run from the lesson's folder in a kernel of its own."""
    copy = folder / path.name
    copy.write_text(json.dumps(notebook), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / "ipython")}
    command = [sys.executable, "-c", EXECUTE, str(copy), str(path.parent)]
    began = os.times()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    ended = os.times()
    assert done.returncode == 0, done.stderr[-4000:]
    assert ended.children_user - began.children_user < SECONDS
    return read(copy)


def printed(notebook, stream):
    """All text that the cells wrote to a stream."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return "".join("".join(x["text"]) for x in outputs if x.get("name") == stream)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["as it stands", "filled in"])
@every_lesson
def test_runs_from_a_clean_kernel(path, state, tmp_path):
    """No cell needs an answer to run; what the answers' page says is what the checks accept."""
    for package in ("nbclient", "ipykernel", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (pip install -e '.[lessons]')")
    notebook = read(path)
    expected = "not yet"
    if state == "filled in":
        expected = "right"
        page = answers(path)
        for cell in notebook["cells"]:
            number = cell["id"].removeprefix("turn-").replace("-", ".")
            if cell["id"].startswith("turn-"):
                cell["source"] = solution(page[number])
    done = execute(notebook, path, tmp_path)
    checks = re.findall(r"^question (\S+): (.*)$", printed(done, "stdout"), flags=re.MULTILINE)
    assert checks == [(number, expected) for number in to_fill(notebook)]
    assert printed(done, "stderr") == ""


if __name__ == "__main__":
    for lesson in LESSONS:
        lesson.write_text(written(read(lesson)), encoding="utf-8")
