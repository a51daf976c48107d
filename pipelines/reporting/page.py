"""The results as one HTML page that holds its style and pictures, and needs no other file."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipelines.reporting.table import Cell, Evaluated, Row, make_rows, paper_lines

_STYLE = Path(__file__).with_name("page.css")


def to_html(evaluated: Sequence[Evaluated]) -> str:
    """Return the table, and below it the pictures of each benchmark, checkpoint by checkpoint."""
    rows = make_rows(evaluated)
    benchmarks = list(dict.fromkeys(row.benchmark for row in rows))
    theirs = paper_lines(rows)
    parts = [
        "<h1>Evaluations</h1>",
        f'<p class="quiet">{len(evaluated)} checkpoint{"s" * (len(evaluated) > 1)}, '
        f"{len(benchmarks)} benchmarks. Small numbers are 95 % intervals; a floor is what "
        "something that knows nothing gets.</p>",
        _table(evaluated, rows),
        *(
            ["<h2>In the paper</h2>", _plain_table(theirs, texts=(0, len(theirs[0]) - 1))]
            if theirs
            else []
        ),
        *_failures(evaluated),
        *(_section(benchmark, evaluated) for benchmark in benchmarks),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>Evaluations</title>\n'
        f"<style>\n{_STYLE.read_text()}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body>\n</html>\n"
    )


def _table(evaluated: Sequence[Evaluated], rows: Sequence[Row]) -> str:
    columns = "".join(f'<th class="number">{_breakable(one.name)}</th>' for one in evaluated)
    has_paper = any(row.paper is not None for row in rows)
    paper = '<th class="number">paper</th>' * has_paper
    header = f"<tr><th>benchmark</th><th>metric</th>{columns}<th>floor</th>{paper}</tr>"
    body: list[str] = []
    for _, group in itertools.groupby(rows, lambda row: row.benchmark):
        of_benchmark = list(group)
        for number, row in enumerate(of_benchmark):
            name = f'<th rowspan="{len(of_benchmark)}">{_breakable(row.benchmark)}</th>'
            body.append(
                (f'<tr class="first">{name}' if number == 0 else "<tr>")
                + f"<td>{escape(row.label)}</td>"
                + "".join(_table_cell(row, cell) for cell in row.cells)
                + f"<td>{'<br>'.join(map(escape, row.floor_lines))}</td>"
                + f'<td class="number">{escape(row.paper_text)}</td>' * has_paper
                + "</tr>"
            )
    return _scrolled(header, body)


def _table_cell(row: Row, cell: Cell | None) -> str:
    if cell is None:
        return '<td class="number"></td>'
    interval = row.interval_text(cell)
    below = f"<small>{interval}</small>" if interval else ""
    return f'<td class="number">{row.shown(cell.value)}{below}</td>'


def _failures(evaluated: Sequence[Evaluated]) -> list[str]:
    lines = [
        f'<p class="failed">{escape(name)} of {escape(one.name)}: {escape(why)}</p>'
        for one in evaluated
        for name, why in one.failures.items()
    ]
    return ["<h2>Not ended well</h2>", *lines] if lines else []


def _section(benchmark: str, evaluated: Sequence[Evaluated]) -> str:
    """Return pictures of all checkpoints and tables of languages; "" if there is neither."""
    figures: list[str] = []
    tables: list[str] = []
    for one in evaluated:
        result = one.results.get(benchmark, {})
        for name in result.get("pictures", []):
            place = one.folder / f"{benchmark}-{name}.png"
            if place.exists():
                figures.append(_figure(f"{name} · {one.name}", place.read_bytes()))
        per_language = result.get("details", {}).get("per_language")
        if per_language:
            tables.append(_language_table(one.name, per_language))
    if not figures and not tables:
        return ""
    pictures = ['<div class="pictures">', *figures, "</div>"] if figures else []
    return "\n".join([f"<h2>{_breakable(benchmark)}</h2>", *pictures, *tables])


def _figure(caption: str, png: bytes) -> str:
    encoded = base64.b64encode(png).decode()
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<img alt="{escape(caption)}" src="data:image/png;base64,{encoded}"></figure>'
    )


def _language_table(name: str, per_language: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(next(iter(per_language.values())))
    lines = [["language", *columns]]
    lines += [[one, *(f"{found[c]:.4g}" for c in columns)] for one, found in per_language.items()]
    title = escape(f"{len(per_language)} languages · {name}")
    return f"<details><summary>{title}</summary>\n{_plain_table(lines, texts=(0,))}\n</details>"


def _plain_table(lines: Sequence[Sequence[str]], texts: Collection[int]) -> str:
    """Return a table below its header; columns other than `texts` are set to the right."""

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = ["" if number in texts else ' class="number"' for number in range(len(cells))]
        found = zip(kinds, map(_breakable, cells), strict=True)
        return f"<tr>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for kind, cell in found)}</tr>"

    return _scrolled(row(lines[0], "th"), [row(line, "td") for line in lines[1:]])


def _scrolled(header: str, body: Sequence[str]) -> str:
    rows = "\n".join(body)
    return (
        f'<div class="scroll"><table>\n<thead>{header}</thead>\n<tbody>\n{rows}\n</tbody>\n'
        "</table></div>"
    )


def _breakable(name: str) -> str:
    """Return a long name that may go on in the next line after a slash or an underscore."""
    return escape(name).replace("/", "/<wbr>").replace("_", "_<wbr>")
