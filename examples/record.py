"""Recorded runs: what the pages say, and the pages themselves.

    python examples/record.py runs/grok_addition                    # keep a finished run
    python examples/record.py runs/mse --name grok_addition_mse     # under a name of its own
    python examples/record.py                                       # make the pages anew

A finished run is kept in examples/results as NAME.json (its run.json: command, date, device, time,
settings, results) and NAME.png; its maps.npz, where it has one, as NAME.npz. README.md and the
pages in examples/ are made from the templates in examples/results/pages, in which
{{NAME::RESULT::FORMAT}} stands for a number of a recorded run, such as
{{grok_addition::test_accuracy::.1%}}. So no number is typed by hand, and a test fails when a page
and its records disagree."""

import argparse
import json
import re
import shlex
import sys
from pathlib import Path

from _pictures import small_png

from tinygrok.cli import InputError, main
from tinygrok.disk.writer import atomic_write, write_json

EXAMPLES = Path(__file__).resolve().parent
RESULTS = EXAMPLES / "results"
TEMPLATES = RESULTS / "pages"
KEPT = ("date", "device", "dtype", "versions", "wall_seconds", "config", "results")
# Flags that say where a run was made and written, not what was run.
PLACES = ("--out", "--threads", "--workers", "--scheduler")
PLACEHOLDER = re.compile(r"\{\{(.+?)\}\}")
MAPS = "maps.npz"
MAPS_BYTES = 200_000
RESULT_LETTERS = 6000  # of a record; long results, tables and curves, stay in the run's folder


# -- a run is kept ---------------------------------------------------------------------------------


def without_places(words: list[str]) -> list[str]:
    """The command without the flags of PLACES, absolute paths by their last name."""
    kept = []
    skip = False
    for word in words:
        flag, _, value = word.partition("=")
        if not skip and flag not in PLACES:
            kept.append(bare(word))
        skip = flag in PLACES and not value
    return [word for word in kept if word != "--resume"]


def bare(value):
    """A path of this machine by its last name; anything else as it is."""
    if isinstance(value, str) and Path(value).is_absolute():
        return Path(value).name
    return value


def shortest(results: dict) -> dict:
    """The shortest results, as many as RESULT_LETTERS hold, in their order."""
    letters = {key: len(json.dumps(value)) + len(key) for key, value in results.items()}
    kept = set()
    room = RESULT_LETTERS
    for key in sorted(letters, key=letters.get):
        room -= letters[key]
        if room >= 0:
            kept.add(key)
    return {key: value for key, value in results.items() if key in kept}


def keep(folder: Path, name: str, picture: str) -> None:
    """Copy what the pages need of a finished run into examples/results."""
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no finished run of an example ({error})") from error
    record = {"command": shlex.join(without_places(run["command"]))}
    record |= {key: run[key] for key in KEPT}
    record["device"] = run["device"].split(";")[0]
    record["results"] = shortest(run["results"])
    record["config"] = {key: bare(value) for key, value in run["config"].items()}
    maps = folder / MAPS
    if maps.exists() and maps.stat().st_size > MAPS_BYTES:
        raise InputError(f"{maps}: more than {MAPS_BYTES} bytes")
    pictures = [small_png(path) for path in sorted(folder.glob(picture))[:1]]
    write_json(RESULTS / f"{name}.json", record)
    print(f"kept {RESULTS / name}.json")
    if maps.exists():
        atomic_write(RESULTS / f"{name}.npz", lambda file: file.write(maps.read_bytes()))
        print(f"kept {RESULTS / name}.npz")
    for png, colors in pictures:
        path = RESULTS / f"{name}.png"
        atomic_write(path, lambda file, png=png: file.write(png))
        print(f"kept {path}: {len(png) // 1000} kB, {colors} colours")


# -- pages -----------------------------------------------------------------------------------------


def target(template: Path) -> Path:
    """Where a template's page lies: the README at the top, the others in examples/."""
    folder = EXAMPLES.parent if template.name == "README.md" else EXAMPLES
    return folder / template.name


def lookup(reference: str, records: dict[str, dict]) -> str:
    """NAME::KEY::FORMAT: a result of a record, or else one of its settings or of its own entries.

    KEY may lead into lists and dictionaries: accuracy/autoinit, seconds/0. FORMAT is Python's, a
    list is formatted entry by entry; "min" stands for seconds in minutes."""
    name, _, rest = reference.partition("::")
    key, _, form = rest.partition("::")
    try:
        record = records[name]
        value = record | record["config"] | record["results"]
        for step in key.split("/"):
            value = value[int(step) if isinstance(value, list) else step]
        return formatted(value, form)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{{{{{reference}}}}}: {type(error).__name__}: {error}") from error


def formatted(value, form: str) -> str:
    """A value as the pages show it; nothing, such as a step that was never reached, is a dash."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(formatted(entry, form) for entry in value)
    if form == "min":
        return f"{max(value / 60, 0.1):.1f} min" if value < 570 else f"{value / 60:.0f} min"
    return format(value, form)


def load_records() -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def render(template: Path, records: dict[str, dict]) -> str:
    """The page of a template."""
    text = template.read_text(encoding="utf-8")
    return PLACEHOLDER.sub(lambda match: lookup(match[1], records), text)


def render_all() -> None:
    records = load_records()
    for template in sorted(TEMPLATES.glob("*.md")):
        page = render(template, records)
        path = target(template)
        atomic_write(path, lambda file, page=page: file.write(page.encode()))
        print(f"made {path}")


def run(argv=None) -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("run", nargs="?", type=Path, help="folder of a finished run (its --out)")
    p.add_argument("--name", help="name of the record (default: that of the folder)")
    p.add_argument("--picture", default="*.png", help="which of its figures (default: the first)")
    args = p.parse_args(argv)
    if args.run is not None:
        keep(args.run, args.name or args.run.resolve().name, args.picture)
    render_all()


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
