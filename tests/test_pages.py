"""The pages say what the recorded runs say: they are made from them, and no number is typed."""

import importlib
import io
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from tinygrok.engine.errors import InputError
from tinygrok.probes.phases import PHASES

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))
record = importlib.import_module("record")
pictures = importlib.import_module("_pictures")
phase_diagram = importlib.import_module("phase_diagram")
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
    shown = sorted(record.RESULTS.glob("*.png"))
    sizes = [path.stat().st_size for path in shown]
    assert max(sizes) <= 150_000
    assert sum(sizes) <= 3_000_000
    pages = "".join(template.read_text() for template in TEMPLATES)
    for path in shown:
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


def check_maps(path):
    """The maps that stand beside a record are those that its numbers were counted in."""
    run = json.loads(path.with_suffix(".json").read_text())
    assert path.stat().st_size <= record.MAPS_BYTES
    with np.load(path) as maps:
        phases = maps["phase"]
        shape = (len(maps["strength"]), len(maps["alpha"]), len(maps["xi"]))
        assert phases.shape == maps["train"].shape == maps["test"].shape == shape
        strengths = maps["strength"].tolist()
    assert strengths == run["config"]["strengths"]
    name = run["config"]["regularizer"].replace("_", " ")
    for strength, cells in zip(strengths, phases, strict=True):
        counts = np.bincount(cells.ravel(), minlength=len(PHASES)).tolist()
        said = [run["results"].get(f"{name} {strength:g}: {phase}", 0) for phase in PHASES]
        assert said == counts


def check_training_maps(path):
    """The accuracies of training_maps.py, None where every rate diverged, of the maps whose cells
    the record holds."""
    results = json.loads(path.with_suffix(".json").read_text())["results"]
    with np.load(path) as maps:
        panels = zip(maps["norm"], maps["mu"], maps["train_accuracy"], strict=True)
        for norm, mu, accuracies in panels:
            cells = results.get(f"norm {norm}, mu {mu:g}: cells")
            if cells is None:
                continue
            said = np.array(cells["train_accuracy"], dtype=float)
            np.testing.assert_allclose(accuracies, said, rtol=1e-6)


def test_maps_say_what_their_records_say():
    for path in record.RESULTS.glob("*.npz"):
        of_training = path.stem.startswith("training_maps")
        check = check_training_maps if of_training else check_maps
        check(path)


def test_maps_are_kept(tmp_path, monkeypatch):
    """Those of a small sweep, with its record; too large ones are refused, nothing is written."""
    out = tmp_path / "run"
    flags = "--grid 2 --p 11 --width 8 --steps 5 --strengths 0 5 --no-plot --threads 1"
    phase_diagram.main([*flags.split(), "--out", str(out)])
    results = tmp_path / "results"
    monkeypatch.setattr(record, "RESULTS", results)
    record.keep(out, "x", "*.png")
    check_maps(results / "x.npz")
    with np.load(out / "maps.npz") as maps:
        arrays = dict(maps)
    arrays["phase"] = (arrays["phase"] + 1) % len(PHASES)
    np.savez(results / "x.npz", **arrays)
    with pytest.raises(AssertionError):
        check_maps(results / "x.npz")
    (out / "maps.npz").write_bytes(b"0" * (record.MAPS_BYTES + 1))
    with pytest.raises(InputError, match="maps.npz: more than 200000 bytes"):
        record.keep(out, "y", "*.png")
    assert not (results / "y.json").exists()


def painted(size):
    """White with a smooth ramp of greys, a flat area, and a thin line in a colour of its own."""
    pixels = np.full((size, 2 * size, 3), 255, np.uint8)
    pixels[: size // 2, : 2 * size] = np.linspace(0, 255, 2 * size)[:, None]
    pixels[size // 2 : size // 2 + 20, :size] = (224, 122, 95)
    pixels[-3, 5:25] = (0, 114, 178)
    return pixels


def test_a_picture_loses_nothing_that_is_seen():
    Image = pytest.importorskip("PIL.Image")
    before = painted(200)
    source = io.BytesIO()
    Image.fromarray(before).save(source, "png")
    png, colors = pictures.small_png(source)
    drawn = Image.open(io.BytesIO(png))
    after = np.asarray(drawn.convert("RGB"))
    assert drawn.mode == "P"
    assert colors == len(drawn.getcolors()) < 50
    assert np.abs(before.astype(int) - after).max() <= 6
    for place in ((-1, -1), (105, 5), (-3, 10)):
        np.testing.assert_array_equal(after[place], before[place])


def test_a_picture_of_many_colours_has_256(tmp_path):
    """Scaled to the width of the pages; what cannot be made small is refused."""
    Image = pytest.importorskip("PIL.Image")
    path = tmp_path / "a.png"
    pixels = np.zeros((40, 2100, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, 2100)
    pixels[..., 1] = np.linspace(0, 255, 40)[:, None]
    Image.fromarray(pixels).save(path)
    png, colors = pictures.small_png(path)
    assert Image.open(io.BytesIO(png)).size == (pictures.WIDTH, 20)
    assert colors <= 256
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(path)
    with pytest.raises(InputError, match="256 colours and 110000 bytes do not"):
        pictures.small_png(path)


def test_a_picture_that_cannot_be_kept_leaves_no_record(tmp_path, monkeypatch):
    """Without Pillow, or from a file that is none: one line, and nothing is written."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    run = {"command": ["x.py"], "device": "CPU", "config": {}, "results": {}}
    run |= dict.fromkeys(("date", "dtype", "versions", "wall_seconds"))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "a.png").write_text("none")
    with pytest.raises(InputError, match="a.png: no picture"):
        record.keep(folder, "x", "*.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match="need Pillow: pip install"):
        record.keep(folder, "x", "*.png")
    assert list(tmp_path.iterdir()) == [folder]
