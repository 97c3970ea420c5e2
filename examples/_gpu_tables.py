"""What gpu_check.py shows: a line a part, and Markdown tables of all rows."""

from _gpu_long import LONG
from _gpu_parts import PARTS
from _gpu_rows import Row, failed

SHOWN = 5  # failed rows of a part that are printed
VERDICTS = {True: "ok", False: "FAILED", None: ""}


def summary(name: str, part: dict) -> str:
    """A part in a line, and a line for each of the first checks that failed."""
    rows = part["rows"]
    wrong = [row for row in rows if failed(row)]
    checks = f"{len(rows)} checks" if rows else ""
    if wrong:
        checks += f", {len(wrong)} failed"
    lines = [f"{name:<18}{part['verdict']:<12}{part['seconds']:>7.1f} s   {checks}".rstrip()]
    for row in wrong[:SHOWN]:
        lines.append(f"    {row['check']}: {numbers(row)}")
    if len(wrong) > SHOWN:
        lines.append(f"    and {len(wrong) - SHOWN} more")
    return "\n".join(lines)


def numbers(row: Row) -> str:
    """What a failed check says: its error, or its numbers."""
    if row.get("error"):
        return row["error"]
    shown = {k: x for k, x in row.items() if k not in ("check", "passed", "error")}
    return ", ".join(f"{name} {text(x)}" for name, x in shown.items())


def text(x) -> str:
    """A number, a fact or nothing, as a cell shows it."""
    if x is None:
        return "-"
    if isinstance(x, bool):
        return "yes" if x else "no"
    if isinstance(x, float):
        return f"{x:.3g}"
    return str(x).replace("|", "\\|")


def table(rows: list[Row]) -> str:
    """A Markdown table with every number that some row has."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if name not in ("check", "passed", "error")]
    if any(row.get("error") for row in rows):
        columns.append("error")
    lines = [f"| check | {' | '.join(columns)} | verdict |"]
    lines.append("|" + " --- |" * (len(columns) + 2))
    for row in rows:
        cells = [text(row.get(name)) for name in columns]
        lines.append(f"| {row['check']} | {' | '.join(cells)} | {VERDICTS[row.get('passed')]} |")
    return "\n".join(lines)


def markdown(dev, parts: dict[str, dict]) -> str:
    """The report: a line a part, then a table of each."""
    lines = ["# GPU check", "", dev.reason, "", "| part | verdict | seconds | what it shows |"]
    lines.append("| --- | --- | --- | --- |")
    for name, part in parts.items():
        title = (PARTS.get(name) or LONG[name]).title
        lines.append(f"| {name} | {part['verdict']} | {part['seconds']} | {title} |")
    for name, part in parts.items():
        if part["rows"]:
            lines += ["", f"## {name}", "", table(part["rows"])]
    return "\n".join(lines) + "\n"
