"""The pages say what the recorded runs say: they are made from them, and no number is typed."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tinygrok.engine.errors import InputError

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))
record = importlib.import_module("record")
TEMPLATES = sorted(record.TEMPLATES.glob("*.md"))
RECORDS = sorted(record.RESULTS.glob("*.json"))
IDS = {"ids": lambda path: path.name}
# What may be typed: versions, settings, theory, sizes of what is described.
SETTING = "p|m|n|N|mu|J|width|depth|vocabulary|last|code|rank|within|sigma_[wb](\\^2)?|exponent"
TYPED = re.compile(
    r"(Python|NumPy|CUDA|CIFAR-|VGG-|papers?|seeds?|float) ?[0-9][0-9.]*( to [0-9.]+)?"
    rf"|\b({SETTING}) (= )?[0-9]+"
    r"|[0-9]+( x [0-9]+)+|[0-9]+(-layer| (ReLU |random )?(layer|token|second|million|kind|moment))"
    r"|[0-9]+( to [0-9]+)? (members|minutes|hours)|batch [0-9]+|channels / 8|\(2, \.\.\.\)"
    r"|\b[a-z][0-9]|2310\.13061|1/[pN24m]|r/2|2d|period [24]|3/4|\(4/3\)|1e-12"
    r"|of 1\b|1 \+|(60|99|90|30)%"
)


@pytest.mark.parametrize("template", TEMPLATES, **IDS)
def test_a_page_is_what_its_template_and_the_records_say(template):
    page = record.target(template).read_text(encoding="utf-8")
    made = record.render(template, record.load_records())
    assert page == made, "edit examples/results/pages, then run python examples/record.py"


def prose(template):
    """(heading of the column or "", text) of everything that is neither code, nor a link, nor a
    placeholder."""
    text = template.read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"\{\{.+?\}\}|`[^`]*`|\[[0-9.]+\](?=\()|\]?\(http[^)]*\)|\]\([^)]*\)", " ", text)
    columns = []
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = []
            yield "", re.sub(r"^#+ ([0-9]+\.)?|^\*\*[0-9]+\.", "", line)
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        columns = columns or cells
        yield from zip(columns, cells, strict=True)


@pytest.mark.parametrize("template", TEMPLATES, **IDS)
def test_no_number_is_typed_by_hand(template):
    typed = []
    for column, text in prose(template):
        if column not in ("the paper", "of the products"):
            typed += re.findall(r".{,20}\d[\d.,]*.{,20}", TYPED.sub("#", text))
    assert not typed


@pytest.mark.parametrize("path", RECORDS, **IDS)
def test_a_record_is_small_and_names_no_machine(path):
    text = path.read_text()
    assert len(text) <= 16_000
    run = json.loads(text)
    assert (EXAMPLES / shlex.split(run["command"])[0]).exists()
    assert {"date", "device", "versions", "wall_seconds", "config", "results"} <= set(run)
    words = re.findall(r'"(/[^"/]+/[^"]*)"', text)
    assert not words


def test_pictures_are_small_and_shown():
    pictures = sorted(record.RESULTS.glob("*.png"))
    sizes = [path.stat().st_size for path in pictures]
    assert max(sizes) <= 150_000
    assert sum(sizes) <= 3_000_000
    pages = "".join(template.read_text() for template in TEMPLATES)
    for path in pictures:
        assert path.with_suffix(".json") in RECORDS
        assert f"results/{path.name}" in pages
    for template in TEMPLATES:
        page = record.target(template)
        for link in re.findall(r"\]\(([^):]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_record_is_on_a_page():
    pages = "".join(template.read_text() for template in TEMPLATES)
    unused = [path.stem for path in RECORDS if f"{{{{{path.stem}::" not in pages]
    assert not unused


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_what_is_kept_of_a_command():
    words = ["lcg_probe.py", "/home/me/runs/a.npz", "--out", "x", "--threads=2", "--seed", "3"]
    assert record.without_places([*words, "--resume"]) == ["lcg_probe.py", "a.npz", "--seed", "3"]


def test_long_results_stay_in_the_folder():
    results = {"a": 1, "curve": list(range(2000)), "b": "x" * 5900, "c": [0.5] * 3, "d": "y" * 99}
    assert list(record.shortest(results)) == ["a", "c", "d"]
    assert record.shortest({"a": 1, "b": None}) == {"a": 1, "b": None}


def test_placeholders():
    run = {"config": {"p": 7}, "results": {"a": {"b": [0.25, None]}}, "wall_seconds": 90.0}
    records = {"x": run}
    assert record.lookup("x::a/b::.0%", records) == "25%, -"
    assert record.lookup("x::a/b/0", records) == "0.25"
    assert record.lookup("x::p", records) == "7"
    assert record.lookup("x::wall_seconds::min", records) == "1.5 min"
    for wrong in ("y::p", "x::q", "x::a/b/9", "x::p::.zz"):
        with pytest.raises(InputError, match=re.escape("{{" + wrong + "}}")):
            record.lookup(wrong, records)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="no finished run"):
        record.keep(tmp_path, "x", "*.png")
