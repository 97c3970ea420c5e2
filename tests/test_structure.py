"""The layout holds: layers import downwards, the library stays small, every pair is documented,
nothing heavy at import."""

import ast
import io
import re
import shutil
import subprocess
import sys
import tokenize
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "tinygrok"
MODULES = sorted(LIBRARY.rglob("*.py"))
# A folder may import itself and the folders before it that are listed.
ALLOWED = {
    "engine": {"engine"},
    "ops": {"engine", "ops"},
    "models": {"engine", "ops", "models"},
    "tasks": {"engine", "tasks"},
    "probes": {"engine", "tasks", "probes"},
    "analytic": {"engine", "ops", "models", "tasks", "analytic", "probes"},
    "criticality": {"engine", "ops", "models", "criticality"},
}
MATHEMATICS = tuple(ALLOWED)
# Files serve the mathematics: models and tasks read some.
ALLOWED["disk"] = {"engine", "disk"}
ALLOWED["models"].add("disk")
ALLOWED["tasks"].add("disk")
ALLOWED["plots"] = {*MATHEMATICS, "disk", "plots"}
ALLOWED["training"] = {*MATHEMATICS, "disk", "plots", "training"}
ALLOWED["audit"] = {*MATHEMATICS, "training", "audit"}
ALLOWED["cli.py"] = {*MATHEMATICS, "disk", "plots", "training", "audit", "__version__"}
ALLOWED["__init__.py"] = set(ALLOWED)


def imported(path):
    """Modules of the library that a file imports, as dotted names below tinygrok."""
    package = path.relative_to(LIBRARY).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (".".join((*base, name)) for name in names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tinygrok"):
            yield node.module.partition(".")[2]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(LIBRARY)))
def test_layers_import_downwards(path):
    for name in imported(path):
        assert name.split(".")[0] in ALLOWED[folder(path)], f"{path.name} imports {name}"


def folder(path):
    """The folder of a module of the library, or its name at the top."""
    return path.relative_to(LIBRARY).parts[0]


def docstring_lines(tree):
    lines = set()
    for node in ast.walk(tree):
        kind = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if kind and ast.get_docstring(node) is not None:
            lines.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def tokens_by_line(path):
    """{line: names, operators, numbers and strings in it}; no comments, no docstrings."""
    text = path.read_text()
    docstrings = docstring_lines(ast.parse(text))
    layout = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    counts = Counter()
    inside = 0  # an f-string, which Python 3.12 and newer take apart: one token everywhere
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in layout | {tokenize.COMMENT} or token.start[0] in docstrings:
            continue
        kind = tokenize.tok_name[token.type]
        counts[token.start[0]] += not inside
        inside += (kind == "FSTRING_START") - (kind == "FSTRING_END")
        for line in range(token.start[0] + 1, token.end[0] + 1):  # a string over several lines
            counts[line] += 0
    return counts


def test_line_budget(capsys):
    """The mathematics, and what serves it, each in its own pot; short files, lines without golf."""
    counts = {path: tokens_by_line(path) for path in MODULES}
    pots = {"mathematics": 0, "service": 0}
    table = []
    for path, tokens in counts.items():
        pots["mathematics" if folder(path) in MATHEMATICS else "service"] += len(tokens)
        mean = tokens.total() / max(len(tokens), 1)
        name = str(path.relative_to(ROOT))
        table.append(f"{name:40} {len(tokens):4} lines {mean:5.1f} tokens a line")
    with capsys.disabled():
        print("", *table, f"code lines: {pots}", sep="\n")
    assert pots["mathematics"] <= 5500
    assert pots["service"] <= 3000
    assert not [path.name for path, tokens in counts.items() if len(tokens) > 500]
    dense = []
    for path, tokens in counts.items():
        dense += [f"{path.relative_to(ROOT)}:{n}" for n, count in tokens.items() if count > 35]
    assert not dense, f"{len(dense)} lines of more than 35 tokens: {dense}"


def test_examples_are_short():
    """An example is flags, build, and what is measured: 200 lines, and a main of at most 40."""
    for path in (ROOT / "examples").glob("*.py"):
        tokens = tokens_by_line(path)
        assert len(tokens) <= 200, f"{path.name}: {len(tokens)} lines"
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name == "main":
                size = sum(node.lineno <= line <= node.end_lineno for line in tokens)
                assert size <= 40, f"{path.name}: main has {size} lines"


def test_examples_import_the_command_line_first():
    """It limits BLAS to one thread a process, which NumPy reads when it is loaded."""
    for path in (ROOT / "examples").glob("[!_]*.py"):
        names = []
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                both = (node.module, *(alias.name for alias in node.names))
                names.append("cli" if both == ("tinygrok", "cli") else node.module)
            elif isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
        loading = [n for n in names if n in ("cli", "numpy") or n.startswith(("_", "tinygrok"))]
        if "cli" in loading:
            assert loading[0] == "cli", f"{path.name} imports {loading[0]} before cli"


def two_thoughts(node):
    """a, b = b, a is one thought; a, b = 1, 2 is two."""
    tuples = isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
    if not tuples or not isinstance(node.targets[0], ast.Tuple):
        return False
    given = {ast.unparse(x) for x in ast.walk(node.value) if isinstance(x, ast.expr)}
    return not any(ast.unparse(x) in given for x in node.targets[0].elts)


def nested_conditional(node):
    """a if p else b if q else c"""
    return isinstance(node, ast.IfExp) and any(
        isinstance(part, ast.IfExp) for part in (node.test, node.body, node.orelse)
    )


def equal_to_itself(node):
    """x != x is a riddle; isnan(x) says what is meant."""
    if not isinstance(node, ast.Compare):
        return False
    sides = [ast.unparse(x) for x in (node.left, *node.comparators)]
    return any(a == b for a, b in zip(sides, sides[1:], strict=False))


def text_times_truth(node):
    """ "s" * (count > 1)"""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult):
        return False
    sides = (node.left, node.right)
    text = any(isinstance(getattr(x, "value", None), str) for x in sides)
    formatted = any(isinstance(x, ast.JoinedStr) for x in sides)
    truth = any(isinstance(x, ast.Compare | ast.BoolOp) for x in sides)
    return truth and (text or formatted)


def loops_in_loops(node):
    """[f(x, y) for x in a for y in b if p if q]: at most one for with one condition."""
    loops = getattr(node, "generators", [])
    return len(loops) > 1 or any(len(loop.ifs) > 1 for loop in loops)


GOLF = [two_thoughts, nested_conditional, equal_to_itself, text_times_truth, loops_in_loops]


@pytest.mark.parametrize("golf", GOLF, ids=lambda golf: golf.__name__)
def test_one_statement_one_thought(golf):
    wrong = []
    for path in MODULES:
        nodes = ast.walk(ast.parse(path.read_text()))
        wrong += [f"{path.relative_to(ROOT)}:{node.lineno}" for node in nodes if golf(node)]
    assert not wrong, f"{len(wrong)} times {golf.__name__}, {golf.__doc__}: {wrong}"


def test_no_lambda_is_bound_to_a_name():
    """ruff's E731 says so, and nobody silences it."""
    silenced = [path.name for path in MODULES if "E731" in path.read_text()]
    assert not silenced


def test_public_functions_are_documented():
    """Every public function and class; an operation's forward and backward state their formula and
    shapes."""
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                doc = ast.get_docstring(node) or ""
                small = path.name == "cli.py" or (
                    isinstance(node, ast.FunctionDef) and len(node.body) <= 3
                )
                assert doc or small, f"{path.name}: {node.name} has no docstring"
                if path.parent.name == "ops" and re.search("_(forward|backward)$", node.name):
                    assert " = " in doc or "  " in doc, f"{node.name} states no formula"
                if path.parent.name == "ops" and node.name.endswith("_forward"):
                    assert "(..." in doc or "shape" in doc or "last axis" in doc, (
                        f"{node.name} states no shapes"
                    )


def test_import_loads_nothing_heavy():
    """Importing the library or an example's modules loads numpy alone: no CuPy, matplotlib, torch
    or tqdm."""
    code = (
        "import sys, tinygrok; assert 'numpy' not in sys.modules; "
        "import tinygrok.cli, tinygrok.plots.style, tinygrok.training.sweep, tinygrok.audit.cases; "
        "heavy = {'cupy', 'matplotlib', 'torch', 'tqdm', 'safetensors', 'distributed', 'mpi4py'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_top_level():
    allowed = {"pyproject.toml", "README.md", "LICENSE", "tinygrok", "examples", "tests"}
    generated = {"build", "dist", "runs", "venv"}
    extra = {
        p.name
        for p in ROOT.iterdir()
        if not p.name.startswith(".") and not p.name.endswith(".egg-info")
    }
    assert extra - generated <= allowed


@pytest.mark.slow
def test_an_editable_install_is_a_path(tmp_path):
    """With a finder instead, Python beside the clone would import the clone's folder, which holds
    no code at its top."""
    pytest.importorskip("setuptools", minversion="77")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "tinygrok/engine").mkdir(parents=True)
    shutil.copy(LIBRARY / "__init__.py", tmp_path / "tinygrok")
    (tmp_path / "tinygrok/engine/__init__.py").touch()
    code = "import setuptools.build_meta as build; print(build.build_editable('.'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        top = [name for name in archive.namelist() if "dist-info" not in name]
    assert [name.endswith(".pth") for name in top] == [True], done.stdout
