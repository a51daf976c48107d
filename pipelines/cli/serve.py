"""`serve` serves a page to try a model."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from dataclasses import dataclass

from clippo_core.errors import ConfigError
from pipelines.cli.arguments import CHECKPOINT, parse, take_checkpoint
from pipelines.config.resolution import read_run_config, run_of
from pipelines.datasets.manifest import is_prepared, read_manifest
from pipelines.datasets.sources import locate_source
from pipelines.runtime.storage import Location
from pipelines.tracking.models import find_model, model_name


@dataclass(frozen=True)
class ServeArguments:
    """Serve a page that searches pictures by text in any script, or by another picture."""

    collection: str | None = None
    """A prepared data set or a folder of pictures; None: the pictures the run is evaluated on."""
    limit: int | None = None
    """Search the first so many pictures only; None: all."""
    host: str = "127.0.0.1"
    """Address to listen on. If it is not the default, other machines can search and upload: there
    is no password."""
    port: int = 8000
    """Port to listen on; 0: any that is free."""
    max_upload_mb: float = 10
    """Largest picture that may be uploaded, in units of 1,000,000 bytes."""
    cpus: float = 1
    """CPUs that Ray sets aside for the model, and for each task that embeds the collection."""


def run(argv: list[str]) -> None:
    """Serve until interrupted; the last line is the address."""
    name, rest = take_checkpoint(argv, command="serve")
    arguments = parse(ServeArguments, rest, command="serve", subject=CHECKPOINT)
    _check(arguments)
    checkpoint = find_model(name)
    wanted = arguments.collection or _evaluated_on(checkpoint)
    # Imported here, since Ray takes seconds and a wrong flag should be told of at once.
    from pipelines.embedding import input_kind
    from pipelines.runtime.ray_session import ray_session
    from pipelines.serving.application import PageSettings, served
    from pipelines.serving.collection import embed_collection
    from pipelines.serving.requests import LOOPBACK_NAMES

    kind, place = input_kind(wanted)
    host = arguments.host
    is_local = host in ("localhost", "::1") or host.startswith("127.")
    settings = PageSettings(
        checkpoint=checkpoint.uri,
        model_name=model_name(name, checkpoint),
        max_upload_bytes=round(arguments.max_upload_mb * 1e6),
        allowed_hosts=(*LOOPBACK_NAMES, host) if is_local else None,
        host=host,
        port=free_port(host, arguments.port),
        cpus=arguments.cpus,
    )
    with ray_session(cpus=arguments.cpus):
        # SIGTERM ends the page as Ctrl-C does; Ray has set a handler of its own.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        collection = embed_collection(
            checkpoint.uri, kind, place, cpus=arguments.cpus, limit=arguments.limit
        )
        rejected = "".join(f", {n} {reason}" for reason, n in collection.rejected.items())
        print(f"{len(collection)} pictures of {collection.name}{rejected}")
        if not is_local:
            print(
                f"listening on {host}: whoever reaches it can search and upload, "
                "without a password",
                file=sys.stderr,
            )
        with served(settings, collection):
            print(f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/", flush=True)
            threading.Event().wait()


def _check(arguments: ServeArguments) -> None:
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError(f"--limit {arguments.limit}: expected 1 or more; leave it out for all")
    if not 0 <= arguments.port <= 65535:
        raise ConfigError(f"--port {arguments.port}: expected a number up to 65535, 0 for any")
    if not 0 < arguments.max_upload_mb <= 1000:
        raise ConfigError(f"--max-upload-mb {arguments.max_upload_mb:g}: expected up to 1000")


def _evaluated_on(checkpoint: Location) -> str:
    """Return the first data set of pictures that a checkpoint's run is evaluated or trained on."""
    run_folder = run_of(checkpoint)
    if run_folder is None:
        raise ConfigError(
            f"{checkpoint.uri} belongs to no run that would say what to search; name a data set "
            "or a folder of pictures with --collection"
        )
    config = read_run_config(run_folder)
    evaluated = [task.partition(":")[2] for task in config.evaluation.tasks]
    named = [*filter(None, evaluated), *config.data.sources]
    for name in named:
        place = locate_source(name)
        if not is_prepared(place) or read_manifest(place).kind.startswith("image"):
            return name
    return named[0]


def free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0; Ray Serve would complain late of one that is taken.

    Raises:
        ConfigError: if it is taken, or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family) as probe:
            return probe.getsockname()[1]
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror}); name another with --port "
            "or --host"
        ) from None
