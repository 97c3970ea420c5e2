"""The layout holds: layers import downwards, the library stays small, every pair is documented, nothing heavy at import."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "tinygrok"
MODULES = sorted(LIBRARY.rglob("*.py"))
# A layer may import itself and what is listed; the top modules in their order, each the ones before it.
ALLOWED = {
    "engine": {"engine"},
    "ops": {"engine", "ops"},
    "models": {"engine", "ops", "models"},
    "tasks": {"engine", "tasks"},
    "probes": {"engine", "probes"},
    "analytic": {"engine", "ops", "models", "tasks", "analytic", "probes"},
    "criticality": {"engine", "ops", "models", "criticality"},
}
TOP = ["parallel", "train", "sequences", "checkpoint", "corrupted", "inspect_gpt", "audit", "audit_cases", "sweep"]
TOP += ["plots", "plots_corrupted", "plots_sequences", "plots_lcg", "plots_critical", "cli"]


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
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    for name in imported(path):
        layer = name.split(".")[0]
        if len(parts) > 1:
            assert layer in ALLOWED[parts[0]], f"{path.name} imports {name}"
        elif layer in TOP and parts[0] in TOP:
            assert TOP.index(layer) < TOP.index(parts[0]), f"{path.name} imports {name}"


def code_lines(path):
    """Lines of code: no blank lines, no comments, no docstrings."""
    text = path.read_text()
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skip:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def test_line_budget():
    counts = {path: code_lines(path) for path in MODULES}
    assert sum(counts.values()) <= 5000, sum(counts.values())
    assert max(counts.values()) <= 500, max(counts, key=counts.get)
    for path in (ROOT / "examples").glob("*.py"):
        assert code_lines(path) <= 200, path.name


def test_public_functions_are_documented():
    """Every public function and class; an operation's forward and backward state their formula and shapes."""
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                doc = ast.get_docstring(node) or ""
                small = path.name == "cli.py" or (isinstance(node, ast.FunctionDef) and len(node.body) <= 3)
                assert doc or small, f"{path.name}: {node.name} has no docstring"
                if path.parent.name == "ops" and re.search("_(forward|backward)$", node.name):
                    assert " = " in doc or "  " in doc, f"{node.name} states no formula"
                if path.parent.name == "ops" and node.name.endswith("_forward"):
                    assert "(..." in doc or "shape" in doc or "last axis" in doc, f"{node.name} states no shapes"


def test_import_loads_nothing_heavy():
    """Importing the library or an example's modules loads numpy alone: no CuPy, matplotlib, torch or tqdm."""
    code = (
        "import sys, tinygrok; assert 'numpy' not in sys.modules; "
        "import tinygrok.cli, tinygrok.plots, tinygrok.train, tinygrok.audit_cases; "
        "print([m for m in ('cupy', 'matplotlib', 'torch', 'tqdm', 'safetensors', 'distributed', 'mpi4py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_top_level():
    allowed = {"pyproject.toml", "README.md", "LICENSE", "tinygrok", "examples", "tests"}
    generated = {"build", "dist", "runs", "venv"}
    extra = {p.name for p in ROOT.iterdir() if not p.name.startswith(".") and not p.name.endswith(".egg-info")}
    assert extra - generated <= allowed
