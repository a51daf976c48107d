"""The page as a Ray Serve deployment: a model, a collection, and the routes for searching it."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import logging
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from jaxtyping import Float32, UInt8
from PIL import Image
from ray import serve
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from clippo_core.checkpoints import load_checkpoint, model_identity
from clippo_core.checkpoints.native import STATE_FILE
from clippo_core.errors import ConfigError, Rejected, StorageError
from clippo_core.evaluation.scripts import languages_by_script
from clippo_core.evaluation.sequence_length import share_full
from clippo_core.images import decode_image, decode_thumbnail
from clippo_core.modeling import PairModel
from clippo_core.rendering import TextRasters
from clippo_core.rendering.unifont import BUNDLED_FONT
from clippo_core.vocabulary import PreparedTexts, concatenate_texts
from pipelines.runtime.ray_session import cluster_address
from pipelines.runtime.run_checkpoints import fetched
from pipelines.runtime.storage import Location
from pipelines.serving.collection import Collection
from pipelines.serving.requests import (
    Gate,
    RequestError,
    answer_error,
    answer_failure,
    read_body,
    read_text,
)

APPLICATION = "clippo"
MAX_TEXT_CHARS = 2000
MAX_RESULTS = 96
_RESULTS = 24
_THUMBNAIL_PX = 320
#: Pictures that are decoded at a time; the largest that is allowed takes half a gigabyte.
_DECODED_AT_A_TIME = 1
_EXAMPLES = 8
#: Texts of the collection that a query's best score is compared with, the fewest that will do, and
#: the share of them that may score lower than a usual query.
_TEXTS_COMPARED, _LEAST_TEXTS, _UNUSUAL_SHARE = 1000, 8, 0.02
_PAGE = Path(__file__).parent / "page"
_OPENAPI = Path(__file__).with_name("openapi.json")
_FILES = {"/": "index.html", **{f"/{n}": n for n in ("page.css", "page.js", "icon.svg")}}


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """The settings of a page.

    Attributes:
        checkpoint: a native folder or a .npz, where every machine finds it.
        model_name: the model's name on the page.
        max_upload_bytes: size of the largest picture that may be uploaded.
        allowed_hosts: host names that requests may be made to; None: any.
        host: address to listen on.
        port: port to listen on.
        cpus: CPUs that Ray sets aside for the model.
    """

    checkpoint: str
    model_name: str
    max_upload_bytes: int
    allowed_hosts: tuple[str, ...] | None
    host: str
    port: int
    cpus: float


@serve.deployment(
    # Many, since most of them wait: for slow clients, or for their turn with the model.
    max_ongoing_requests=1000,
    max_queued_requests=1000,
    graceful_shutdown_timeout_s=2,
    graceful_shutdown_wait_loop_s=0.1,
)
@serve.ingress()
class SearchPage:
    """A model and a collection, and the answers to requests."""

    def __init__(self, settings: PageSettings, collection: Sequence[Any]) -> None:
        """Load the model.

        Args:
            settings: the page's settings.
            collection: a reference to the `Collection` in Ray's object store, in a list.
        """
        self._settings = settings
        self._collection: Collection = ray.get(collection[0])
        with fetched(Location.of(settings.checkpoint)) as path:
            self._model = load_checkpoint(path)
            about = _about_model(path, self._model, settings)
        self._about = about | _about_collection(self._collection)
        self._usual_score = usual_score(self._model, self._collection)
        self._decoding = asyncio.Semaphore(_DECODED_AT_A_TIME)
        # A method's cache would be shared by all instances, and keep them.
        self._thumbnail = functools.lru_cache(maxsize=2048)(self._make_thumbnail)

    def __serve_build_asgi_app__(self) -> Starlette:
        """Build the routes, once there is a model."""
        return Starlette(
            routes=[
                *(Route(path, _file, methods=["GET"]) for path in _FILES),
                Route("/api/openapi.json", _openapi, methods=["GET"]),
                Route("/api/about", self.about, methods=["GET"]),
                Route("/api/search/text", self.search_by_text, methods=["POST"]),
                Route("/api/search/picture", self.search_by_picture, methods=["POST"]),
                Route("/api/search/like/{picture}", self.search_alike, methods=["GET"]),
                Route("/pictures/{picture}", self.picture, methods=["GET"]),
            ],
            middleware=[
                Middleware(
                    Gate,
                    allowed_hosts=self._settings.allowed_hosts,
                    max_body_bytes=self._settings.max_upload_bytes,
                )
            ],
            exception_handlers={
                HTTPException: answer_error,
                Exception: answer_failure,
            },
        )

    async def about(self, _request: Request) -> Response:
        """Describe the model, the collection and the limits, with some pictures to begin with."""
        return JSONResponse(self._about)

    async def search_by_text(self, request: Request) -> Response:
        """Search by a text."""
        text = await read_text(request, max_chars=MAX_TEXT_CHARS)
        prepared = self._model.prepare_texts([text])
        if not isinstance(prepared, TextRasters):
            # A model that reads tokens sees nothing that could be shown.
            query = {"kind": "text", "seen": None, "is_cut": share_full(prepared) > 0}
            return self._answer(request, query, await self._embed(prepared), is_text=True)
        if not prepared.occupied_rows[0]:
            raise RequestError(
                422,
                "there is nothing to see in this text",
                expected="characters that the model's font has",
                do="write something else",
            )
        # A text that looks the same without its last character does not fit on the canvas.
        shorter = self._model.renderer.render_batch([text.rstrip()[:-1]])
        is_cut = np.array_equal(shorter.columns, prepared.columns)
        query = {
            "kind": "text",
            "seen": _as_data(prepared.to_pixels()[0]),
            "is_cut": is_cut,
            "is_unjoined": any(unicodedata.bidirectional(letter) == "AL" for letter in text),
        }
        return self._answer(request, query, await self._embed(prepared), is_text=True)

    async def search_by_picture(self, request: Request) -> Response:
        """Search by an uploaded picture."""
        encoded = await read_body(request, max_bytes=self._settings.max_upload_bytes)
        pixels = await self._canvas(encoded)
        query = {"kind": "picture", "seen": _as_data(pixels)}
        return self._answer(request, query, await self._embed(pixels))

    async def search_alike(self, request: Request) -> Response:
        """Search by one of the collection's own pictures."""
        picture = self._picture_number(request)
        pixels = await self._canvas(await asyncio.to_thread(self._collection.read, picture))
        query = {"kind": "alike", "seen": _as_data(pixels), **_shown(self._collection, picture)}
        embedding = self._collection.pictures.embeddings[picture]
        return self._answer(request, query, embedding, but=picture)

    async def picture(self, request: Request) -> Response:
        """Send a picture of the collection, encoded anew, so that no foreign file is sent."""
        number = self._picture_number(request)
        async with self._decoding:
            found = await asyncio.to_thread(self._thumbnail, number)
        if isinstance(found, Rejected):
            raise _undecodable(found, "the collection's file has changed; start the page anew")
        content, media_type = found
        return Response(content, media_type=media_type)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.005)
    async def _embed(
        self, queries: list[PreparedTexts | UInt8[np.ndarray, "height_px width_px 3"]]
    ) -> list[Float32[np.ndarray, " embed"]]:
        """Embed the rendered texts and canvases of requests that come together."""
        return await asyncio.to_thread(embed_queries, self._model, queries)

    async def _canvas(self, encoded: bytes | None) -> UInt8[np.ndarray, "height_px width_px 3"]:
        """Decode a picture to the canvas that the model sees."""
        config = self._model.config
        decode = functools.partial(
            decode_image, encoded, config.image, image_size_px=config.render.image_size_px
        )
        async with self._decoding:
            pixels = await asyncio.to_thread(decode)
        if isinstance(pixels, Rejected):
            raise _undecodable(pixels, "choose another file")
        return pixels

    def _make_thumbnail(self, picture: int) -> tuple[bytes, str] | Rejected:
        encoded, image = self._collection.read(picture), self._model.config.image
        pixels = decode_thumbnail(encoded, image, max_side_px=_THUMBNAIL_PX)
        return pixels if isinstance(pixels, Rejected) else _encoded(pixels)

    def _picture_number(self, request: Request) -> int:
        given, count = request.path_params["picture"], len(self._collection)
        number = _whole_number(given)
        if number is None or number >= count:
            raise RequestError(
                404 if number is not None else 422,
                f"there is no picture {given[:20]}",
                expected=f"a number below {count}",
                do="take the numbers from a search's results",
            )
        return number

    def _answer(
        self,
        request: Request,
        query: dict[str, Any],
        embedding: Float32[np.ndarray, " embed"],
        *,
        but: int | None = None,
        is_text: bool = False,
    ) -> Response:
        """Answer with the pictures nearest to the query, as many as the request asks for."""
        given = request.query_params.get("count", str(_RESULTS))
        number = _whole_number(given)
        if number is None or not 1 <= number <= MAX_RESULTS:
            raise RequestError(
                422,
                f"count={given[:20]}",
                expected=f"a number from 1 to {MAX_RESULTS}",
                do="leave it out, or change it",
            )
        results = [
            {"score": round(match.score, 4), **_shown(self._collection, match.picture)}
            for match in self._collection.nearest(embedding, count=number, but=but)
        ]
        usual = self._usual_score
        if is_text and usual is not None and results[0]["score"] < usual:
            # Whatever is asked for, something is nearest.
            query["usual_score"] = round(usual, 4)
        return JSONResponse({"query": query, "results": results})


@contextmanager
def served(settings: PageSettings, collection: Collection) -> Iterator[None]:
    """Serve the page while the block under `with` runs, on a Ray that is connected.

    Raises:
        ConfigError: if the cluster serves another application, which would end with this page.
        StorageError: if it does not start.
    """
    if running := list(serve.status().applications):
        raise ConfigError(
            f"Ray Serve runs {', '.join(running)} on this cluster already; end that first, or "
            "unset RAY_ADDRESS to use a Ray of this machine's own"
        )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    page = SearchPage.options(ray_actor_options={"num_cpus": settings.cpus})
    listening = {"host": settings.host, "port": settings.port, "request_timeout_s": 60}
    bound = page.bind(settings, [ray.put(collection)])
    try:
        serve.start(proxy_location="HeadOnly", http_options=listening, logging_config=quiet)
        serve.run(bound, name=APPLICATION, logging_config=quiet)
        yield
    except RuntimeError as error:
        raise StorageError(f"Ray Serve does not start the page: {error}") from error
    finally:
        # On a cluster Serve would stay; where Ray was started here it ends with Ray.
        if cluster_address() is not None:
            serve.shutdown()


async def _openapi(_request: Request) -> Response:
    return FileResponse(_OPENAPI, media_type="application/json")


async def _file(request: Request) -> Response:
    return FileResponse(_PAGE / _FILES[request.url.path])


def usual_score(model: PairModel, collection: Collection) -> float | None:
    """Return the cosine that nearly all of the collection's own texts reach with some picture.

    A text below it is unlike all that the model has learned to find here. None where the
    collection has too few texts to tell.
    """
    texts = {name for row in collection.class_captions.values() for name in row}
    texts |= set(collection.pictures.captions)
    found = sorted(text for text in texts if text)[:_TEXTS_COMPARED]
    if len(found) < _LEAST_TEXTS:
        return None
    best = (model.encode_texts(found) @ collection.pictures.embeddings.T).max(axis=1)
    return float(np.quantile(best, _UNUSUAL_SHARE))


def embed_queries(
    model: PairModel, queries: Sequence[PreparedTexts | UInt8[np.ndarray, "_ _ 3"]]
) -> list[Float32[np.ndarray, " embed"]]:
    """Return the embeddings of rendered texts and canvases, in their order."""
    images = [query for query in queries if isinstance(query, np.ndarray)]
    texts = [query for query in queries if not isinstance(query, np.ndarray)]
    of_images = iter(model.encode_images(images) if images else ())
    of_texts = iter(model.encode_texts(concatenate_texts(texts)) if texts else ())
    return [next(of_images if isinstance(query, np.ndarray) else of_texts) for query in queries]


def _whole_number(text: str) -> int | None:
    """Return the number that a text is; None if it is none, or of more digits than any here."""
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _shown(collection: Collection, picture: int) -> dict[str, Any]:
    """Return a picture's number, key and caption."""
    found = {"key": collection.pictures.keys, "caption": collection.pictures.captions}
    # The bytes of a file's name need not be text.
    texts = {name: of[picture].encode(errors="replace").decode() for name, of in found.items()}
    return {"id": picture, **texts}


def _undecodable(rejected: Rejected, do: str) -> RequestError:
    reason = rejected.reason.replace("_", " ")
    return RequestError(
        422,
        f"{reason}: {rejected.detail}",
        expected="a whole picture such as PNG, JPEG, WebP, GIF or TIFF",
        do=do,
    )


def _encoded(pixels: UInt8[np.ndarray, "..."]) -> tuple[bytes, str]:
    """Return a picture for a browser, and its media type; small ones stay exact."""
    kind, options = ("PNG", {}) if max(pixels.shape[:2]) <= 128 else ("JPEG", {"quality": 88})
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue(), f"image/{kind.lower()}"


def _as_data(pixels: UInt8[np.ndarray, "..."]) -> str:
    """Return a canvas as a `data:` URI without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _about_model(path: Path, model: PairModel, settings: PageSettings) -> dict[str, Any]:
    state = Location.of(path) / STATE_FILE
    config, font = model.config, model.renderer.font
    return {
        "model": {
            "name": settings.model_name,
            "identity": model_identity(model),
            "step": state.read_json().get("step") if state.exists() else None,
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "image_size_px": config.render.image_size_px,
            "patch_size_px": config.vit.patch_size_px,
            "text_input": config.text_input,
            "text_patches": config.text_patches,
            "font": BUNDLED_FONT.name.partition(".glyphs")[0] if font.is_bundled else "its own",
            "font_sha256": font.sha256,
        },
        "limits": {"text_chars": MAX_TEXT_CHARS, "upload_bytes": settings.max_upload_bytes},
    }


def _about_collection(collection: Collection) -> dict[str, Any]:
    """Return the collection's name and size, and some pictures spread over it."""
    count = len(collection)
    spread = [n * count // min(count, _RESULTS) for n in range(min(count, _RESULTS))]
    pictures = [_shown(collection, picture) for picture in spread]
    captions = dict.fromkeys(picture["caption"] for picture in pictures if picture["caption"])
    short = [caption for caption in captions if len(caption) <= 60]
    in_scripts = _in_many_scripts(collection.class_captions)[: _EXAMPLES - 2]
    return {
        "collection": {
            "name": collection.name,
            "num_pictures": count,
            "rejected": collection.rejected,
        },
        "examples": [*short[: _EXAMPLES - len(in_scripts)], *in_scripts],
        "pictures": pictures,
    }


def _in_many_scripts(class_captions: Mapping[str, Sequence[str]]) -> list[str]:
    """Return names of classes, each in another script, those of most languages first."""
    by_script = languages_by_script(class_captions)
    names: list[str] = []
    for turn, languages in enumerate(by_script.values()):
        of_language = [name for name in class_captions[languages[len(languages) // 2]] if name]
        names.append(of_language[turn % len(of_language)])
    return names
