"""The page to try a model: what it finds, what it refuses, and that it works in a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import schemathesis
from hypothesis import given, settings
from mlflow import MlflowClient
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance

from clippo_core.checkpoints import load_checkpoint, save_checkpoint
from clippo_core.config import ClippoConfig, RenderConfig, VitConfig
from clippo_core.errors import CheckpointError, ConfigError, SampleError
from clippo_core.images import decode_image
from clippo_core.modeling import Clippo
from pipelines.cli import serve
from pipelines.datasets.manifest import RawSample
from pipelines.datasets.sources import open_source
from pipelines.runtime.storage import Location
from pipelines.serving.collection import Collection, EmbeddedPictures, embed_collection
from pipelines.tracking.mlflow_client import connect
from pipelines.tracking.models import find_model, model_name
from tests.integration.colours import colour_samples, encoded_picture, write_samples
from tests.integration.serving import ServedPage, start_page
from tests.unit.test_images import png_that_claims

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
]
EVIL = '<img src=x onerror="document.title=`hacked`">'
QUERIES = ("a red patch", "синий квадрат", "赤い四角 🔴", "مربع أخضر")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vit = VitConfig(width=32, depth=1, mlp_dim=64, num_heads=2, patch_size_px=16, embed_dim=16)
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_checkpoint(path, Clippo(ClippoConfig(vit=vit, render=RenderConfig(image_size_px=32))))
    return path


@pytest.fixture(scope="module")
def registry(
    checkpoint: Path, mlflow_tables: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A registry whose model `tiny` holds the checkpoint beside a pyfunc's own files."""
    folder = tmp_path_factory.mktemp("mlflow")
    model = folder / "artifacts"
    (model / "artifacts").mkdir(parents=True)
    (model / "MLmodel").write_text("flavors: {}\n")
    (model / "config.json").write_text('{"format": "another"}')
    (checkpoint.rename(model / "artifacts" / "checkpoint")).chmod(0o755)
    checkpoint.symlink_to(model / "artifacts" / "checkpoint")
    shutil.copy(mlflow_tables, folder)
    uri = f"sqlite:///{folder}/mlflow.db"
    client: MlflowClient = connect(uri)
    client.create_registered_model("tiny")
    version = client.create_model_version("tiny", str(model))
    client.set_registered_model_alias("tiny", "champion", version.version)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty patches of colour, a file that is no picture, and a caption that would be markup."""
    rows = colour_samples(40)
    rows.append(RawSample("broken", b"no picture", ["broken"]))
    rows.append(RawSample("evil", encoded_picture((250, 250, 0), 1), [EVIL]))
    return write_samples(tmp_path_factory.mktemp("pictures") / "patches", rows, "patches")


@pytest.fixture(scope="module")
def page(registry: str, samples: Path) -> Iterator[ServedPage]:
    page = start_page(
        *("models:/tiny@champion", "--collection", str(samples), "--max-upload-mb", "0.1"),
        env=os.environ | {"SECRET_FOR_TEST": "swordfish"},
    )
    yield page
    page.stop()


def pixels_of(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)))


def usable(samples: Path) -> list[RawSample]:
    return [sample for sample in open_source(str(samples)) if sample.key != "broken"]


def scores_of(checkpoint: Path, samples: Path, query: np.ndarray) -> np.ndarray:
    """Decode and embed every picture here, as the slow reference."""
    model = load_checkpoint(checkpoint)
    canvases = [
        decode_image(sample.image, model.config.image, image_size_px=32)
        for sample in usable(samples)
    ]
    return model.encode_images(canvases) @ query  # pyright: ignore


@pytest.mark.parametrize("count", [1, 7, 40])
def test_the_nearest_are_those_that_sorting_everything_finds(count: int):
    random = np.random.default_rng(0)
    # Rounded, so that many are equal.
    embeddings = random.normal(size=(40, 4)).round().astype(np.float32)
    query = np.array([1, 0.5, 0, 0], np.float32)
    keys = tuple(str(n) for n in range(40))
    pictures = EmbeddedPictures(tuple(range(40)), keys, keys, embeddings)
    collection = Collection("any", "pictures", "/nowhere", pictures)
    order = sorted(range(40), key=lambda n: (-float(embeddings[n] @ query), n))
    found = collection.nearest(query, count=count)
    assert [match.picture for match in found] == order[:count]
    without = collection.nearest(query, count=count, but=order[0])
    assert [match.picture for match in without] == order[1 : count + 1]


def test_threads_that_read_one_file_get_their_own_rows(samples):
    source = open_source(str(samples))
    keys = [sample.key for sample in source]

    def read(number: int) -> str:
        return source.read([number % len(keys)])[0].key

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(400))) == [keys[n % len(keys)] for n in range(400)]


@pytest.mark.ray
def test_a_folder_is_embedded_and_what_is_no_picture_is_counted(local_ray, checkpoint, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for number, sample in enumerate(colour_samples(5)):
        (folder / f"{number}.png").write_bytes(sample.image or b"")
    (folder / "2.png").write_bytes(b"no picture")
    place = Location.of(folder)
    found = embed_collection(str(checkpoint), "pictures", place, cpus=1, limit=4)
    assert found.pictures.keys == ("0.png", "1.png", "3.png")
    assert found.rejected == {"unknown_image_format": 1}
    assert found.read(2) == (folder / "3.png").read_bytes()
    (folder / "3.png").unlink()
    assert found.read(2) is None
    for file in folder.glob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(SampleError, match=r"none of the 4 samples .* is a picture"):
        embed_collection(str(checkpoint), "pictures", place, cpus=1)


def test_a_registered_model_is_the_checkpoint_in_it(registry, checkpoint):
    for reference in ("models:/tiny@champion", "models:/tiny/1"):
        place = find_model(reference)
        assert load_checkpoint(place.uri).config == load_checkpoint(checkpoint).config
    assert model_name("models:/tiny/1", place) == "tiny-1"
    assert find_model(str(checkpoint)) == Location.of(checkpoint)
    with pytest.raises(CheckpointError, match=r"cannot be had from MLflow at sqlite.*expected"):
        find_model("models:/none/1")


@pytest.mark.ray
@pytest.mark.slow
def test_a_text_in_any_script_finds_what_the_model_finds(page, checkpoint, samples):
    model = load_checkpoint(checkpoint)
    for text in QUERIES:
        status, found = page.search(text, count=9)
        assert status == 200, found
        scores = scores_of(checkpoint, samples, model.encode_texts([text])[0])
        ids = [result["id"] for result in found["results"]]
        np.testing.assert_allclose(
            [result["score"] for result in found["results"]], np.sort(scores)[::-1][:9], atol=2e-4
        )
        np.testing.assert_allclose(scores[ids], np.sort(scores)[::-1][:9], atol=2e-4)
        keys = [sample.key for sample in usable(samples)]
        assert [result["key"] for result in found["results"]] == [keys[n] for n in ids]
        seen = pixels_of(found["query"]["seen"])
        assert (seen == model.renderer.render(text)[..., 0]).all()


@pytest.mark.ray
@pytest.mark.slow
def test_a_picture_finds_itself_first_and_its_like_without_it(page, samples):
    own = usable(samples)[10]
    status, found = page.json("/api/search/picture?count=3", own.image)
    assert status == 200, found
    assert found["results"][0]["key"] == own.key
    assert found["results"][0]["score"] == pytest.approx(1, abs=1e-3)
    assert pixels_of(found["query"]["seen"]).shape == (32, 32, 3)
    status, alike = page.json(f"/api/search/like/{found['results'][0]['id']}?count=96")
    assert status == 200
    assert own.key not in [result["key"] for result in alike["results"]]
    assert len(alike["results"]) == 40
    status, headers, content = page.ask(f"/pictures/{found['results'][0]['id']}")
    assert (status, headers["content-type"]) == (200, "image/png")
    assert (pixels_of_png(content) == pixels_of_png(own.image)).all()


def pixels_of_png(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.ray
@pytest.mark.slow
def test_it_says_what_it_serves_and_nothing_of_the_machine(page, samples):
    assert page.said[-1] == f"{page.address}/"
    assert page.said[-2] == "41 pictures of patches, 1 unknown_image_format"
    status, headers, content = page.ask("/api/about")
    about = json.loads(content)
    assert status == 200
    assert about["model"]["name"] == "tiny@champion"
    assert about["model"]["font"] == "unifont-15.1.01"
    assert about["collection"]["num_pictures"] == 41
    assert headers["content-security-policy"].startswith("default-src 'none'")
    for secret in (b"swordfish", os.fsencode(samples.parent), os.fsencode(sys.prefix)):
        assert secret not in content


REFUSED = {
    "blank": ("/api/search/text", b'{"text": "  "}', {}, 422, "nothing to see"),
    "no JSON": ("/api/search/text", b"{", {}, 422, "no text"),
    "another type": ("/api/search/text", b'{"text": 5}', {}, 422, "no text"),
    "deep": ("/api/search/text", b"[" * 20_000, {}, 422, "no text"),
    "long": ("/api/search/text", json.dumps({"text": "a" * 2001}).encode(), {}, 413, "2001"),
    "longer": ("/api/search/text", b" " * 99_000, {}, 413, "too large"),
    "count": ("/api/search/text?count=1000", b'{"text": "a"}', {}, 422, "count=1000"),
    "empty": ("/api/search/picture", b"", {}, 400, "empty"),
    "broken": ("/api/search/picture", b"no picture", {}, 422, "unknown image format"),
    "cut": ("/api/search/picture", encoded_picture((1, 2, 3), 0)[:300], {}, 422, "corrupt"),
    "bomb": ("/api/search/picture", png_that_claims(60_000, 60_000), {}, 422, "too many pixels"),
    "too large": ("/api/search/picture", b"x" * 100_001, {}, 413, "too large"),
    "no such picture": ("/pictures/41", None, {}, 404, "no picture 41"),
    "no number": ("/pictures/-1", None, {}, 422, "no picture -1"),
    "like none": ("/api/search/like/999999999", None, {}, 404, "no picture 9999"),
    "endless number": (f"/api/search/like/{'9' * 5000}", None, {}, 422, "no picture 9999"),
    "endless count": (f"/api/search/text?count={'9' * 5000}", b'{"text": "a"}', {}, 422, "count=9"),
    "other method": ("/api/search/text", None, {}, 405, "Method Not Allowed"),
    "up": ("/../application.py", None, {}, 404, "Not Found"),
    "up, hidden": ("/page/..%2f..%2fapplication.py", None, {}, 404, "Not Found"),
    "a listing": ("/page/", None, {}, 404, "Not Found"),
    "foreign host": ("/api/about", None, {"Host": "evil.example:8000"}, 403, "evil.example"),
    "foreign page": ("/api/about", None, {"Origin": "http://evil.example"}, 403, "another page"),
}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_answered_is_refused_with_what_to_do(page, case: str):
    path, body, headers, expected_status, what = REFUSED[case]
    status, content = page.json(path, body, **headers)
    assert (status, set(content)) == (expected_status, {"what", "expected", "do"})
    assert what in content["what"]


@pytest.mark.ray
@pytest.mark.slow
def test_of_an_upload_that_is_too_large_nothing_has_to_arrive(page):
    with socket.create_connection(("127.0.0.1", page.port), timeout=60) as connection:
        connection.sendall(
            b"POST /api/search/picture HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 5000000000\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", page.port), timeout=60) as connection:
        connection.sendall(
            b"POST /api/search/picture HTTP/1.1\r\nHost: localhost\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(4):
            connection.sendall(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.mark.ray
@pytest.mark.slow
def test_requests_of_all_kinds_are_answered_as_described(page):
    """Right ones and wrong ones, made up from the description that the page serves."""
    described = schemathesis.openapi.from_url(f"{page.address}/api/openapi.json")
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) == 5
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            if operation.path == "/api/about" and mode is schemathesis.GenerationMode.NEGATIVE:
                # It takes nothing that could be wrong.
                continue

            @settings(max_examples=15, deadline=None, database=None)
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case):
                response = case.call()
                # Schemathesis does not count "too large" as a refusal. And no description says
                # which texts are blank, and which bytes are a picture.
                if response.status_code != 413:
                    case.validate_response(response, excluded_checks=[positive_data_acceptance])

            ask()


@pytest.mark.ray
@pytest.mark.slow
def test_two_hosts_are_none(page):
    with socket.create_connection(("127.0.0.1", page.port), timeout=60) as connection:
        connection.sendall(
            b"GET /api/about HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"
        )
        # Either uvicorn refuses it, or the gate does.
        assert connection.recv(100).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 "))


@pytest.mark.ray
@pytest.mark.slow
def test_slow_uploads_hold_nobody_up_and_many_clients_wait_their_turn(page):
    slow = [socket.create_connection(("127.0.0.1", page.port), timeout=60) for _ in range(100)]
    try:
        for connection in slow:
            connection.sendall(
                b"POST /api/search/picture HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Length: 50000\r\n\r\nx"
            )
        with ThreadPoolExecutor(150) as clients:
            statuses = list(clients.map(lambda n: page.search(f"text {n}")[0], range(150)))
        assert set(statuses) == {200}
    finally:
        for connection in slow:
            connection.close()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.browser
def test_a_person_searches_in_a_browser(page, tmp_path):
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    from playwright.sync_api import expect, sync_playwright

    upload = tmp_path / "mine.png"
    upload.write_bytes(encoded_picture((30, 180, 30), 7))
    too_large = tmp_path / "large.png"
    too_large.write_bytes(b"x" * 100_001)
    complaints: list[str] = []
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        tab = browser.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.address)
        expect(tab.locator("#served")).to_have_text("tiny@champion · 41 pictures of patches")
        expect(tab.locator("#model")).to_contain_text("unifont-15.1.01")
        expect(tab.locator(".card")).to_have_count(24)
        # By text, in a script from right to left.
        tab.get_by_label("What to search for").fill("مربع أخضر")
        assert tab.locator("#text").evaluate("field => getComputedStyle(field).direction") == "rtl"
        tab.keyboard.press("Enter")
        expect(tab.locator("#query-title")).to_have_text("مربع أخضر")
        seen = tab.locator("#seen")
        assert seen.evaluate("image => image.decode().then(() => image.naturalWidth)") == 32
        scores = [float(score) for score in tab.locator(".score").all_inner_texts()]
        assert len(scores) == 24
        assert scores == sorted(scores, reverse=True)
        # By a picture of one's own.
        tab.locator("#file").set_input_files(upload)
        expect(tab.locator("#query-title")).to_have_text("mine.png")
        expect(tab.locator("#query-note")).to_contain_text("It is not kept")
        # By one of the results, with the keyboard; and back.
        before = tab.locator(".card").first.get_attribute("data-picture")
        tab.locator(".card").first.press("Enter")
        expect(tab.locator("#query-note")).to_contain_text("A picture of the collection")
        shown = tab.locator(".card").evaluate_all("cards => cards.map(c => c.dataset.picture)")
        assert before not in shown
        tab.go_back()
        expect(tab.locator("#query")).to_be_hidden()
        # What goes wrong is said, and markup in a caption is text.
        tab.locator("#file").set_input_files(too_large)
        expect(tab.get_by_role("alert")).to_contain_text("too large")
        tab.goto(f"{page.address}/#like=40")
        expect(tab.locator("#query-title")).to_have_text(EVIL)
        assert tab.title() != "hacked"
        tab.wait_for_load_state("networkidle")
        browser.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith((f"{page.address}/", "data:image/"))] == []


def test_a_wrong_start_is_told_of_at_once(checkpoint):
    with pytest.raises(ConfigError, match=r"belongs to no run .* --collection"):
        serve.run([str(checkpoint)])
    with pytest.raises(ConfigError, match="--limit 0"):
        serve.run([str(checkpoint), "--limit", "0"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} cannot be listened on"):
            serve.free_port("127.0.0.1", port)


# The last one: it ends the page.
@pytest.mark.ray
@pytest.mark.slow
def test_a_signal_ends_it_and_frees_the_port(page):
    assert page.stop() == 130
    socket.create_server(("127.0.0.1", page.port)).close()
