"""Results side by side: the table, the CSV, the page."""

from __future__ import annotations

import base64
import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clippo_core.errors import SampleError
from pipelines.cli import main
from pipelines.cli.report import find_results
from pipelines.figures.sheets import encode_pngs
from pipelines.reporting.page import to_html
from pipelines.reporting.paper import PUBLISHED
from pipelines.reporting.table import Evaluated, make_rows, to_csv, to_markdown
from pipelines.runtime.storage import Location


def result(metrics: dict[str, float], **more: Any) -> dict[str, Any]:
    return {
        "status": "ok",
        "metrics": metrics,
        "floors": {},
        "intervals": {},
        "num_samples": 50,
        "pictures": [],
        "details": {},
    } | more


IMAGENET = "zero_shot/imagenet-val"


@pytest.fixture
def evaluated(tmp_path: Path) -> list[Evaluated]:
    """Two checkpoints; one lacks a benchmark, one failed."""
    accuracy = {"accuracy": {"chance": 0.001}}
    one = {
        IMAGENET: result(
            {"accuracy": 0.4321}, floors=accuracy, intervals={"accuracy": [0.42, 0.44]}
        ),
        "modality_gap/set": result({"gap": 0.81234}, pictures=["embeddings"]),
        "retrieval/x<b>": {"status": "failed", "message": "no captions | at all\nor more"},
    }
    two = {IMAGENET: result({"accuracy": 0.5}, floors=accuracy)}
    folder = Location.of(tmp_path / "one")
    picture = encode_pngs({"embeddings": np.full((4, 4, 3), 200, np.uint8)})["embeddings"]
    (folder / "modality_gap/set-embeddings.png").write_bytes(picture)
    for name, content in one.items():
        (folder / f"{name}.json").write_json(content)
    return [Evaluated("run/one", folder, one), Evaluated("two", Location.of(tmp_path), two)]


def test_a_score_stands_beside_its_interval_its_floor_and_the_papers(evaluated):
    markdown = to_markdown(evaluated)
    (row,) = [line for line in markdown.splitlines() if line.startswith(f"| {IMAGENET} |")]
    assert row == (
        f"| {IMAGENET} | accuracy, % | 43.2 [42.0 to 44.0] | 50.0 | chance 0.1 | 43.4 (CLIPPO) |"
    )
    assert "| modality_gap/set | gap | 0.812 |  |  |  |" in markdown
    assert f"| {IMAGENET} accuracy | 43.4 | 47.4 | 44.8 | 42 | 33.4 | prompts |" in markdown
    assert "- retrieval/x<b> of run/one: failed: no captions | at all" in markdown
    widths = {line.count("|") for line in markdown.split("\n\n")[0].splitlines()}
    assert len(widths) == 1, "every row has all columns"


def test_part_of_a_data_set_is_not_compared_with_the_paper(evaluated):
    part = {f"{IMAGENET}-first-500": evaluated[1].results[IMAGENET]}
    (row,) = make_rows([Evaluated("part", evaluated[1].folder, part)])
    assert row.paper is None


def test_the_csv_has_the_values_as_they_are(evaluated):
    rows = list(csv.DictReader(io.StringIO(to_csv(evaluated))))
    assert len(rows) == 3
    first = next(
        row for row in rows if row["checkpoint"] == "run/one" and "zero" in row["benchmark"]
    )
    assert (first["value"], first["low"], first["floor"]) == ("0.4321", "0.42", "0.001")
    assert (first["floor_of"], first["paper_percent"]) == ("chance", "43.4")


class _Tags(HTMLParser):
    """Counts what is open, and gathers what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_beside_it(evaluated):
    html = to_html(evaluated)
    tags = _Tags()
    tags.feed(html)
    assert tags.open == []
    (picture,) = tags.sources
    assert base64.b64decode(picture.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert not re.search(r"https?://|@import|url\(", html)
    assert "x&lt;b&gt;" in html
    assert "<b>" not in html


def test_the_papers_rows_are_all_different():
    assert len({(p.benchmark, p.metric) for p in PUBLISHED}) == len(PUBLISHED)
    assert all(0 < v < 100 for p in PUBLISHED for v in p.percent.values())


def test_results_are_found_by_run_checkpoint_and_folder(tmp_path, capsys, monkeypatch):
    run = tmp_path / "runs" / "mine"
    for step in ("step_00000010", "step_00000020"):
        folder = Location.of(run / "evaluations" / step)
        (folder / "zero_shot/set.json").write_json(result({"accuracy": 0.5}))
    (run / "evaluations" / "step_00000030").mkdir()
    (run / "run.json").write_text("{}")
    newest = find_results(str(run))
    assert newest.name == "mine/step_00000020"
    older = find_results(str(run / "checkpoints" / "step_00000010"))
    assert (older.name, list(older.results)) == ("mine/step_00000010", ["zero_shot/set"])
    by_folder = find_results(str(run / "evaluations" / "step_00000010"))
    assert by_folder.results == older.results
    beside = Location.of(tmp_path / "evaluations" / "b16.npz" / "zero_shot/set.json")
    beside.write_json(result({"accuracy": 0.6}))
    assert find_results(str(tmp_path / "b16.npz")).name == "b16.npz"
    with pytest.raises(SampleError, match="has no results yet"):
        find_results(str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), "b16.npz", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert "| zero_shot/set | accuracy, % | 50.0 | 60.0 |  |\n" in printed
    assert [Path(line).name for line in printed.splitlines()[-3:]] == [
        "report.md",
        "report.csv",
        "report.html",
    ]
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
