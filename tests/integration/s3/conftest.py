"""One S3 server for all tests of this folder, and the settings that lead to it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import fsspec
import pytest

from pipelines.runtime.storage import Location
from tests.integration.s3.server import BUCKET, KEY_ID, S3Server


@pytest.fixture(scope="session")
def _server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server in a good mood, with a bucket; the environment leads to it."""
    for name, value in {
        "AWS_ENDPOINT_URL": _server.url,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": "clippo-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    _server.mood = "well"
    # A file system of fsspec keeps the credentials that it was made with.
    fsspec.filesystem("s3").clear_instance_cache()
    fs = fsspec.filesystem("s3")
    if not fs.exists(BUCKET):
        fs.mkdir(BUCKET)
    yield _server
    _server.mood = "well"
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def s3_folder(s3: S3Server) -> Location:
    """A folder of its own in the bucket."""
    return Location(f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}")


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path) -> Location:
    """A folder on this disk, and one in the bucket."""
    if request.param == "local":
        return Location.of(tmp_path / "source")
    return request.getfixturevalue("s3_folder")
