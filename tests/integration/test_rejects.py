"""What cannot be used is counted, listed, replaced, and can be opened."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient

from clippo_core.errors import SampleError
from pipelines.cli import main
from pipelines.config.resolution import resolve
from pipelines.runtime.storage import read_json_lines
from pipelines.training.run import RunSummary, train
from tests.integration.colours import colour_samples, write_samples

NUM_ROWS = 4_000
REASONS = (
    r"could not be used \(.*corrupt_image.*blank_caption.*more than data\.max_reject_ratio=0\.05"
)
pytestmark = pytest.mark.ray


def plant(folder: Path) -> tuple[Path, dict[str, str]]:
    """5 % broken pictures and 5 % captions with nothing to see, and their keys with the reasons."""
    samples, planted = colour_samples(NUM_ROWS), {}
    for number, sample in enumerate(samples):
        if number % 20 == 3:
            samples[number] = sample._replace(image=(sample.image or b"")[:60])
            planted[sample.key] = "corrupt_image"
        elif number % 20 == 11:
            samples[number] = sample._replace(captions=["\u3000"] if number % 40 == 11 else None)
            planted[sample.key] = "blank_caption" if number % 40 == 11 else "missing_caption"
    return write_samples(folder, samples, "planted", rows_per_shard=800), planted


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    return plant(tmp_path_factory.mktemp("data") / "planted")


@pytest.fixture
def summary(local_ray, make_config, damaged, colours) -> RunSummary:
    """A run that meets each of the rows once, and beside them a set without fault."""
    config = make_config(
        data={
            "sources": (str(damaged[0]), str(colours)),
            "weights": (4.0, 1.0),
            "max_reject_ratio": 0.2,
        },
        train={"steps": 50, "global_batch_size": 100, "checkpoint_every": 50},
    )
    return train(resolve(config))


@pytest.mark.slow
def test_exactly_the_planted_rows_are_rejected_and_can_be_opened(
    summary: RunSummary, damaged, capsys, tmp_path
):
    planted = damaged[1]
    rows = list(read_json_lines(summary.run / "rejects"))
    assert {row["key"]: row["reason"] for row in rows} == planted
    assert {row["source"] for row in rows} == {"planted"}
    # The reserve of a rejected row may be a planted one too, and is then met twice.
    assert len(planted) <= len(rows) < 1.3 * len(planted)

    client = MlflowClient(summary.tracked.uri)
    metrics = client.get_run(summary.tracked.run_id).data.metrics
    counts = Counter(row["reason"] for row in rows)
    assert metrics["data/rejected"] == len(rows)
    for reason, count in counts.items():
        assert metrics[f"rejected/planted/{reason}"] == count

    seen = [key for row in read_json_lines(summary.run / "samples") for key in row["keys"]]
    assert len(seen) == 50 * 100
    assert not set(seen) & planted.keys() - {f"s{n:04d}" for n in range(120)}

    out = tmp_path / "opened"
    words = [summary.run.uri, "--rejects", "--reason", "corrupt_image", "-n", "3"]
    assert main(["inspect", *words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{len(planted)} samples rejected, {NUM_ROWS // 20} of them as asked for" in printed
    assert printed.count("beginning with b'\\x89PNG") == 3
    assert printed.splitlines()[-1] == f"{summary.run.uri}/rejects"
    contents = {file.read_bytes() for file in out.iterdir()}
    broken = {(s.image or b"")[:60] for s in colour_samples(NUM_ROWS)[3::20]}
    assert len(contents) <= 3
    assert contents <= broken


def test_inspect_rejects_of_what_is_no_run_says_so(capsys, tmp_path):
    assert main(["inspect", str(tmp_path), "--rejects"]) == 2
    assert "is no run: it has no run.json" in capsys.readouterr().err


def test_a_limit_below_what_is_planted_ends_the_run(local_ray, make_config, damaged, capsys):
    config = make_config(
        data={"sources": (str(damaged[0]),), "max_reject_ratio": 0.05},
        train={"steps": 50, "global_batch_size": 80},
    )
    with pytest.raises(SampleError, match=REASONS):
        train(resolve(config))
