"""Damaged files of every format that is read, and what the readers make of them.

    python -m tests.fuzzing --files 100000 --seed 0

mutates good files at random and reads each one. A reader may return a value, count rejects, or
raise a `ClippoError` (no `StorageError`: the disk works); anything else, and whatever takes longer
than two seconds, is a failure, which is printed with the number that makes the same file again
(`--only`).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clippo_core.checkpoints import load_checkpoint, read_state, save_checkpoint, write_big_vision
from clippo_core.checkpoints.native import SavedState
from clippo_core.config import ClippoConfig, ImageConfig, RenderConfig, VitConfig
from clippo_core.errors import ClippoError, Rejected, StorageError
from clippo_core.images import decode_image, decode_thumbnail
from clippo_core.modeling import Clippo
from clippo_core.rendering import TextRenderer
from clippo_core.rendering.unifont import load_font
from clippo_core.vocabulary import Vocabulary, train_vocabulary
from pipelines.datasets.prepare.index import prepare_index
from pipelines.datasets.prepare.pictures import IndexColumns, prepare_csv
from pipelines.datasets.prepare.texts import prepare_parallel, prepare_texts
from pipelines.datasets.sources import open_source
from pipelines.runtime.storage import Location
from pipelines.stream.batch import Visit, draw_pair

#: Longest that a small file may take.
MAX_SECONDS = 2.0
#: Address space beyond what is taken at the start; more is refused, and fails.
MAX_BYTES = 3 * 2**30
_CAPTIONS = ("a cat on a mat", "un chat", "猫", 'a "quoted", caption', "слон")


@dataclass(frozen=True)
class Reader:
    """A reader of files.

    Attributes:
        suffix: ending of the files' names.
        good: makes whole files.
        read: reads a file, in a folder of its own.
    """

    suffix: str
    good: Callable[[], Sequence[bytes]]
    read: Callable[[Path], object]


@cache
def pictures() -> tuple[bytes, ...]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))
    deep = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100)
    kinds: list[tuple[Image.Image, str, dict]] = [
        *((noise, kind, {}) for kind in ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "PPM", "TIFF")),
        (noise, "JPEG", {"progressive": True}),
        (noise, "TIFF", {"compression": "tiff_lzw"}),
        (noise, "TIFF", {"compression": "jpeg"}),
        (noise.quantize(), "GIF", {"save_all": True, "append_images": [noise.quantize()]}),
        (noise.convert("RGBA"), "PNG", {}),
        (deep, "PNG", {}),
        (deep, "TIFF", {"compression": "tiff_deflate"}),
    ]
    found = []
    for image, kind, options in kinds:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        found.append(buffer.getvalue())
    return tuple(found)


def parquet_of(table: pa.Table, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def parquets() -> list[bytes]:
    columns = {"image": list(pictures()[:4]), "caption": list(_CAPTIONS[:4]), "label": [0, 1, 2, 1]}
    lists = {"image": list(pictures()[:4]), "captions": [list(_CAPTIONS)] * 4}
    options = {"use_dictionary": False, "compression": "none", "row_group_size": 2}
    return [parquet_of(pa.table(t), **o) for t in (columns, lists) for o in (options, {})]


def tars() -> list[bytes]:
    found = []
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
            for number, caption in enumerate(_CAPTIONS):
                files = {
                    "png": pictures()[0],
                    "txt": caption.encode(),
                    "json": json.dumps({"caption": caption}).encode(),
                    "cls": b"%d" % number,
                }
                for extension, content in files.items():
                    info = tarfile.TarInfo(
                        f"{'ü' * 60 if number == 3 else 'x'}{number}.{extension}"
                    )
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        found.append(buffer.getvalue())
    return found


def tables(delimiter: str) -> list[bytes]:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerow(["image", "caption", "de", "fr"])
    for number in range(8):
        writer.writerow([f"{number % 3}.png", *(_CAPTIONS[(number + n) % 5] for n in range(3))])
    return [buffer.getvalue().encode()]


def json_lines() -> list[bytes]:
    rows = [
        {"image": f"{n % 3}.png", "caption": _CAPTIONS[n % 5], "text": f"One {n}. Two. Three."}
        | {"de": _CAPTIONS[n % 5], "fr": [_CAPTIONS[0], None][n % 2]}
        for n in range(8)
    ]
    return [b"".join(json.dumps(row, ensure_ascii=n % 2 == 0).encode() + b"\n" for row in rows)
            for n in range(2)]  # fmt: skip


def documents() -> list[bytes]:
    text = "One sentence. Another one? Yes!\n\nА вот и ещё одно. И другое.\n"
    return [text.encode(), text.replace("\n", "\r\n").encode("utf-8-sig")]


def compressed(kind: str) -> Callable[[], list[bytes]]:
    def good() -> list[bytes]:
        return [pa.Codec(kind).compress(content).to_pybytes() for content in json_lines()]

    return good


@cache
def checkpoint() -> dict[str, bytes]:
    """Files of a tiny checkpoint: native, with what the trainer stores, and big_vision's."""
    vit = VitConfig(width=8, depth=1, mlp_dim=8, num_heads=2, embed_dim=4)
    model = Clippo(ClippoConfig(vit=vit, render=RenderConfig(image_size_px=32)))
    moments = {"moments.a": next(model.parameters()).detach()}
    with tempfile.TemporaryDirectory() as folder:
        native = Path(folder) / "native"
        save_checkpoint(native, model, state=SavedState(moments, {"step": 3, "samples": [1, 2]}))
        write_big_vision(Path(folder) / "x.npz", model.state_dict())
        files = {file.name: file.read_bytes() for file in native.iterdir()}
        return files | {"x.npz": (Path(folder) / "x.npz").read_bytes()}


def in_checkpoint(name: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        for other, content in checkpoint().items():
            if other not in (name, "x.npz"):
                (path.parent / other).write_bytes(content)
        path.rename(path.parent / name)
        return load_checkpoint(path.parent), read_state(path.parent)

    return read


@cache
def data_set() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.parquet").write_bytes(parquets()[0])
        out = Location.of(f"{folder}/out")
        prepare_index(Location.of(f"{folder}/x.parquet"), out, columns=IndexColumns())
        files = {name: (out / name).read_bytes() for name in out.files()}
        manifest = json.loads(files["manifest.json"]) | {"shards_at": None, "files_at": None}
        return files | {"manifest.json": json.dumps(manifest).encode()}


def in_data_set(name: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        for other, content in {**data_set(), "x.parquet": parquets()[0]}.items():
            if other != name:
                (path.parent / other).write_bytes(content)
        path.rename(path.parent / name)
        return read_all(Location.of(path.parent))

    return read


def read_all(folder: Location) -> int:
    """Read a data set as training does, up to the pair that is drawn from each sample."""
    source = open_source(folder.uri)
    renderer, num_drawn = _renderer(), 0
    for read in (iter(source), source.read(range(source.num_rows)), source.read_texts([0])):
        for sample in read:
            pair = draw_pair(Visit(sample, source.manifest.kind, 12345))
            if not isinstance(pair, Rejected):
                renderer.render_batch(pair)
                num_drawn += 1
    source.class_ids()
    return num_drawn


@cache
def _renderer() -> TextRenderer:
    return TextRenderer(RenderConfig(image_size_px=32))


def prepared(
    prepare: Callable[[Location, Location], Sequence[Location]], *, beside: bool = False
) -> Callable[[Path], object]:
    """Read by preparing a data set of the file, and reading that."""

    def read(path: Path) -> object:
        if beside:
            for number, picture in enumerate(pictures()[:3]):
                (path.parent / f"{number}.png").write_bytes(picture)
        return [
            read_all(folder)
            for folder in prepare(Location.of(path), Location.of(path.parent / "out"))
        ]

    return read


def read_picture(path: Path) -> object:
    content = path.read_bytes()
    config = ImageConfig(resize=("bilinear", "scaled_decode")[len(content) % 2])  # pyright: ignore[reportArgumentType]
    return (
        decode_image(content, config, image_size_px=16),
        decode_thumbnail(content, config, max_side_px=8),
    )


def read_vocabulary(path: Path) -> object:
    return Vocabulary(path.read_bytes()).encode(["a cat", "猫"], max_tokens=8)


@cache
def vocabularies() -> tuple[bytes, ...]:
    words = [f"word{number} {caption}" for number in range(50) for caption in _CAPTIONS]
    return (train_vocabulary(words, size=300),)


@cache
def fonts() -> tuple[bytes, ...]:
    lines = [f"{code:04X}:{'18' * 16}" for code in range(0x41, 0x5B)]
    return ("\n".join([*lines, f"4E00:{'1842' * 16}"]).encode(),)


READERS: dict[str, Reader] = {
    "picture": Reader("", pictures, read_picture),
    "tar": Reader(".tar", tars, prepared(lambda p, o: prepare_index(p, o, columns=IndexColumns()))),
    "parquet": Reader(
        ".parquet", parquets, prepared(lambda p, o: prepare_index(p, o, columns=IndexColumns()))
    ),
    "parquet with classes": Reader(
        ".parquet",
        lambda: parquets()[:2],
        prepared(lambda p, o: prepare_index(p, o, columns=IndexColumns(class_name="label"))),
    ),
    "csv of pictures": Reader(".csv", lambda: tables(","), prepared(prepare_csv, beside=True)),
    "json lines of pictures": Reader(".jsonl", json_lines, prepared(prepare_csv, beside=True)),
    "index of a table": Reader(
        ".tsv",
        lambda: tables("\t"),
        prepared(lambda p, o: prepare_csv(p, o, copy=False), beside=True),
    ),
    "documents": Reader(".txt", documents, prepared(prepare_texts)),
    "documents in json lines": Reader(".jsonl", json_lines, prepared(prepare_texts)),
    "documents in gzip": Reader(".jsonl.gz", compressed("gzip"), prepared(prepare_texts)),
    "documents in zstd": Reader(".jsonl.zst", compressed("zstd"), prepared(prepare_texts)),
    "documents in parquet": Reader(
        ".parquet",
        lambda: parquets()[:2],
        prepared(lambda p, o: prepare_texts(p, o, text_column="caption")),
    ),
    **{
        f"parallel texts in {suffix}": Reader(
            suffix,
            good,
            prepared(lambda p, o: prepare_parallel(p, o, columns=["de", "fr"])),
        )
        for suffix, good in (
            (".csv", lambda: tables(",")),
            (".tsv", lambda: tables("\t")),
            (".jsonl", json_lines),
        )
    },
    **{
        f"checkpoint: {name}": Reader(
            "", lambda name=name: [checkpoint()[name]], in_checkpoint(name)
        )
        for name in ("config.json", "model.safetensors", "train_state.json",
                     "train_state.safetensors")
    },
    "checkpoint of big_vision": Reader(".npz", lambda: [checkpoint()["x.npz"]], load_checkpoint),
    "vocabulary": Reader(
        "",
        vocabularies,
        read_vocabulary,
    ),
    "font": Reader(".hex", fonts, lambda path: load_font(str(path))),
    **{
        f"data set: {name}": Reader("", lambda name=name: [data_set()[name]], in_data_set(name))
        for name in ("manifest.json", "shards.parquet")
    },
    "data set: x.parquet": Reader("", lambda: [parquets()[0]], in_data_set("x.parquet")),
}  # fmt: skip

#: What damage writes over a file, beside bytes at random: numbers out of all bounds, bad UTF-8, ….
_TOKENS = (
    *(b"\x00", b"\xff\xff\xff\xff", b"\x80\x00\x00\x00", b"\xed\xa0\x80", b"\xc3", b"\\ud800"),
    *(b"99999999999999999999", b"-1", b"1e999", b"NaN", b"null", b"[", b"{", b'"', b",", b"\n"),
    *(b"[" * 20_000, b'{"a":' * 10_000, b"0" * 5_000, b"\r", b"\x1a", b"..", b"/"),
)


def mutated(content: bytes, generator: random.Random) -> bytes:
    """Return a file with a few of its bytes changed, removed, repeated or cut off."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        at = generator.randrange(len(data))
        length = min(generator.choice((1, 2, 4, 8, 64, 512)), len(data) - at)
        match generator.randrange(7):
            case 0:
                data[at] ^= 1 << generator.randrange(8)
            case 1:
                data[at : at + length] = generator.randbytes(length)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length] * generator.choice((1, 2, 50))
            case 4:
                data[at : at + length] = bytes(length)
            case 5:
                token = generator.choice(_TOKENS)
                data[at : at + generator.choice((0, len(token)))] = token
            case _:
                if generator.random() < 0.3:
                    del data[at:]
    return bytes(data)


@dataclass(frozen=True)
class Failure:
    """A file that made a reader fail."""

    number: int
    reader: str
    problem: str


class _TooSlowError(BaseException):
    """Raised in a reader that takes too long; no `Exception`, so that none of it is swallowed."""


def file_of(number: int, seed: int) -> tuple[str, bytes]:
    """Return the reader, and the content, of a damaged file."""
    generator = random.Random(f"{seed}/{number}")
    name = list(READERS)[number % len(READERS)]
    return name, mutated(generator.choice(list(READERS[name].good())), generator)


def read_damaged(number: int, seed: int, scratch: Path) -> tuple[str, Failure | None]:
    """Read a damaged file; return what came of it, and the failure if it is one."""
    name, content = file_of(number, seed)
    # Each in a folder of its own: shards are kept open by their names.
    folder = scratch / str(number)
    folder.mkdir()
    path = folder / f"x{READERS[name].suffix}"
    path.write_bytes(content)
    begun = time.perf_counter()
    try:
        with _limited(4 * MAX_SECONDS):
            READERS[name].read(path)
        outcome, problem = f"{name}: read", ""
    except StorageError:
        outcome, problem = f"{name}: failure", traceback.format_exc()
    except ClippoError as error:
        outcome, problem = f"{name}: {type(error).__name__}", ""
    except (Exception, _TooSlowError):  # noqa: BLE001 - that is what is looked for
        outcome, problem = f"{name}: failure", traceback.format_exc()
    seconds = time.perf_counter() - begun
    shutil.rmtree(folder)
    if not problem and seconds > MAX_SECONDS:
        problem = f"took {seconds:.1f} s"
    return outcome, Failure(number, name, problem) if problem else None


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_args: object) -> None:
        raise _TooSlowError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(numbers: Sequence[int], seed: int) -> tuple[Counter[str], list[Failure]]:
    """Read so many damaged files; return how often each outcome was, and the failures."""
    outcomes, failures = Counter[str](), list[Failure]()
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as scratch, contextlib.ExitStack() as quiet:
        # What readers print, such as progress, is not looked at.
        quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
        quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        for number in numbers:
            outcome, failure = read_damaged(number, seed, Path(scratch))
            outcomes[outcome] += 1
            if failure is not None:
                failures.append(failure)
    return outcomes, failures


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, default=None, help="number of one file")
    parser.add_argument("--reader", default=None, help="files of one reader")
    arguments = parser.parse_args()
    import resource

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + MAX_BYTES, resource.RLIM_INFINITY))
    numbers = range(arguments.files) if arguments.only is None else [arguments.only]
    names = list(READERS)
    if arguments.reader is not None:
        numbers = [n for n in numbers if names[n % len(names)] == arguments.reader]
    outcomes, failures = run(numbers, arguments.seed)
    kinds: dict[str, list[Failure]] = {}
    for failure in failures:
        last = failure.problem.strip().splitlines()
        kinds.setdefault(f"{failure.reader}: {last[-1][:100]}", []).append(failure)
    for kind, found in kinds.items():
        print(
            f"{len(found)} x {kind} (first: --only {found[0].number})\n{found[0].problem[-1500:]}"
        )
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:>7} {outcome}")
    print(f"{sum(outcomes.values())} files, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
