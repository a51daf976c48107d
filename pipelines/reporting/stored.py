"""Results of evaluations as files: `TASK/SOURCE.json`, and the pictures beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from clippo_core.errors import SampleError, StorageError
from pipelines.config.settings import EvaluationOptions
from pipelines.datasets.manifest import read_manifest
from pipelines.reporting.reports import (
    RESULT_FORMAT,
    WEIGHTS,
    Benchmark,
    EvaluationReport,
    options_json,
    short_digest,
)
from pipelines.runtime.storage import Location

#: Rows of a table of languages that are printed; a longer table is in the JSON alone.
_LANGUAGES_PRINTED = 80


def file_name(report: EvaluationReport) -> str:
    """Return the report's name for files, which differs where only a part of the data was read."""
    blank = report.result.get("options", {}).get("blank")
    return _name(report.name, report.result.get("limit"), blank)


def _name(benchmark: str, limit: int | None, blank: str | None) -> str:
    without = "" if blank is None else f"-blank-{blank}"
    return f"{benchmark}{without}" + ("" if limit is None else f"-first-{limit}")


def write_report(report: EvaluationReport, folder: Location) -> Location:
    """Store a report: `folder/TASK/SOURCE.json`, and its pictures beside it."""
    place = folder / f"{file_name(report)}.json"
    content = report.result or {"checkpoint": report.checkpoint, **asdict(report.benchmark)}
    place.write_json({"status": report.status, "message": report.message} | content)
    for name, png in report.pictures.items():
        (folder / f"{file_name(report)}-{name}.png").write_bytes(png)
    if report.status == "ok" and report.benchmark.source:
        # An earlier failure may not have come as far as the data set's own name.
        earlier = folder / f"{report.benchmark.task}/{report.benchmark.place_name}.json"
        if _read(earlier).get("status", "ok") != "ok":
            earlier.remove_file()
    return place


def stored_report(
    checkpoint: Location,
    identity: str,
    benchmark: Benchmark,
    options: EvaluationOptions,
    folder: Location,
) -> EvaluationReport | None:
    """Return the report of an earlier evaluation that rests on the same, if there is one.

    It must be ok, and of the same weights, data (by its digest) and options.

    Args:
        checkpoint: the checkpoint to evaluate.
        identity: the identity of its model (`model_identity`).
        benchmark: the benchmark to run.
        options: the options of that evaluation.
        folder: the folder of results.
    """
    name, digest, limit = WEIGHTS, short_digest(identity), None
    if benchmark.source:
        try:
            manifest = read_manifest(Location.of(benchmark.source))
        except SampleError:
            return None
        name, digest, limit = manifest.name, manifest.digest, options.limit
    file = _name(f"{benchmark.task}/{name}", limit, options.blank)
    stored = _read(folder / f"{file}.json")
    wanted = {
        "status": "ok",
        "format_version": RESULT_FORMAT,
        "model": identity,
        "source_digest": digest,
        "options": options_json(options),
    }
    if not wanted.items() <= stored.items():
        return None
    try:
        also_read = {uri: read_manifest(Location.of(uri)).digest for uri in stored["also_read"]}
    except SampleError:
        return None
    if also_read != stored["also_read"]:
        return None
    return EvaluationReport(checkpoint.uri, benchmark, "ok", stored)


def _read(place: Location) -> dict[str, Any]:
    """Return a stored result; {} where there is none, or none that can be read."""
    try:
        found = place.read_json()
    except (FileNotFoundError, StorageError):
        return {}
    return found if isinstance(found, dict) else {}


def stored_results(folder: Location) -> dict[str, dict[str, Any]]:
    """Return all results in a folder by sorted names, such as "zero_shot/fashion_mnist-test"."""
    found = {
        name.removesuffix(".json"): _read(folder / name)
        for name in folder.files()
        if name.endswith(".json") and name.count("/") == 1
    }
    return {name: result for name, result in found.items() if "status" in result}


def result_lines(report: EvaluationReport) -> list[str]:
    """Return the lines of a terminal for a report that is ok."""
    result = report.result
    numbers = ", ".join(
        f"{name} {value:.4f}{_beside(name, result)}" for name, value in result["metrics"].items()
    )
    lines = [f"{report.name}: {numbers} ({result['num_samples']} samples)"]
    return [*lines, *_language_table(result["details"].get("per_language", {}))]


def _beside(metric: str, result: Mapping[str, Any]) -> str:
    """Return the interval of a metric and its floors, as " [0.79 to 0.81; chance 0.1]"."""
    interval = " to ".join(f"{end:.4f}" for end in result["intervals"].get(metric, ()))
    floors: Mapping[str, float] = result["floors"].get(metric, {})
    parts = [interval, ", ".join(f"{name} {value:.4f}" for name, value in floors.items())]
    return f" [{'; '.join(filter(None, parts))}]" if any(parts) else ""


def _language_table(per_language: Mapping[str, Mapping[str, float]]) -> list[str]:
    if not per_language:
        return []
    if len(per_language) > _LANGUAGES_PRINTED:
        return [f"  {len(per_language)} languages, each in the result's file"]
    names = list(next(iter(per_language.values())))
    lines = ["  ".join(["language".ljust(10), *names])]
    for language, found in per_language.items():
        cells = [f"{found[name]:.4g}".rjust(len(name)) for name in names]
        lines.append("  ".join([language.ljust(10), *cells]))
    return lines
