"""`embed` writes the embeddings of pictures and texts as Parquet."""

from __future__ import annotations

from dataclasses import dataclass

from clippo_core.config import Precision, require
from pipelines.cli.arguments import CHECKPOINT, parse, take_checkpoint
from pipelines.runtime.storage import Location
from pipelines.tracking.models import find_model


@dataclass(frozen=True)
class EmbedArguments:
    """Embed a data set's pictures and captions, a folder of pictures, or a file of texts."""

    input: str
    """A prepared data set, a folder of pictures, or a .txt file of one text a line."""
    out: str
    """Folder or URI for the Parquet files."""
    precision: Precision = "float32"
    """Precision of the matrix products; bfloat16 is off in the third digit, and faster where the
    hardware has it."""
    cpus: float = 1
    """CPUs that Ray sets aside for a task, which decodes pictures on as many."""
    gpus: float = 0
    """GPUs that Ray sets aside for a task, which encodes there while its CPUs decode; several tasks
    share one that each takes a part of, such as 0.1."""
    max_tasks: int | None = None
    """Tasks at a time; None: as many as fit."""


def run(argv: list[str]) -> None:
    """Embed the input; the last line is the folder."""
    name, rest = take_checkpoint(argv, command="embed")
    arguments = parse(EmbedArguments, rest, command="embed", subject=CHECKPOINT)
    from pipelines.embedding import EmbeddingJob, embed, input_kind
    from pipelines.runtime.ray_session import ray_session

    checkpoint = find_model(name)
    kind, place = input_kind(arguments.input)
    out = Location.of(arguments.out)
    require(0 <= arguments.gpus <= 1, f"gpus={arguments.gpus}; expected 0 to 1")
    with ray_session(cpus=arguments.cpus, gpus=arguments.gpus):
        job = EmbeddingJob(checkpoint.uri, kind, place.uri, out.uri, arguments.precision)
        summary = embed(
            job, cpus=arguments.cpus, gpus=arguments.gpus, max_tasks=arguments.max_tasks
        )
    rejected = f", {summary.num_rejected} rejected" if summary.num_rejected else ""
    print(f"{summary.num_embeddings} embeddings{rejected}, model {summary.model}")
    print(out.uri)
