"""The dashboard by which a Ray cluster is reached: its address, its token, its nodes."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from psutil import net_if_addrs

from clippo_core.errors import ConfigError, StorageError

LOCAL_DASHBOARD = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_TIMEOUT_S = 10.0


def use_token_mode() -> None:
    """Identify this process by the cluster's token, unless the person set RAY_AUTH_MODE.

    A token file of ours that others can read, as Ray writes it, is closed.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    with suppress(OSError):
        status = token_path().stat()
        if status.st_uid == os.getuid() and status.st_mode & 0o077:
            token_path().chmod(0o600)


def is_token_mode() -> bool:
    """Return True if Ray identifies this process by a token."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def token_path() -> Path:
    """Return the token's file, which Ray reads where RAY_AUTH_TOKEN does not hold the token."""
    default = Path.home() / ".ray" / "auth_token"
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or default).expanduser()


def auth_token() -> str | None:
    """Return the token from RAY_AUTH_TOKEN or its file, as Ray does, or None if there is none.

    Raises:
        ConfigError: if the file cannot be read.
    """
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    try:
        return token_path().read_text().strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"the token file {token_path()} cannot be read: {error}") from None


def auth_headers() -> dict[str, str]:
    """Return the HTTP headers that identify this process to a dashboard."""
    token = auth_token() if is_token_mode() else None
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def dashboard_address(given: str | None) -> str:
    """Return the dashboard's URL: given, from the environment, or on this machine.

    Raises:
        StorageError: if a cluster is named by another address and does not answer there.
    """
    named = given or next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), LOCAL_DASHBOARD)
    if named.startswith(("http://", "https://")):
        return named.rstrip("/")
    # Ray's own addresses (auto, HOST:6379): the cluster itself says where its dashboard is.
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        found = JobSubmissionClient(named).get_address()
    except (RayError, ConnectionError, RuntimeError, OSError, ValueError) as error:
        raise StorageError(
            f"no cluster answers at {named}: {error}; name its dashboard, such as "
            f"--address {LOCAL_DASHBOARD}"
        ) from error
    return found if "://" in found else f"http://{found}"


@dataclass(frozen=True)
class Node:
    """A living machine of a cluster."""

    host: str
    labels: dict[str, str]
    resources: dict[str, float]
    is_head: bool

    @property
    def role(self) -> str:
        """Role of the node: head, renderer, trainer or evaluator; "unlabelled" if it has none."""
        return "head" if self.is_head else self.labels.get("clippo.role", "unlabelled")


@dataclass(frozen=True)
class Dashboard:
    """The dashboard of a cluster; a query that gets no answer raises StorageError."""

    address: str

    def _ask(self, path: str) -> tuple[Any, str | None]:
        """Return the JSON at a path, and the time of the answer by the server's own clock."""
        request = urllib.request.Request(f"{self.address}{path}", headers=auth_headers())
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                return json.loads(answer.read()), answer.headers.get("Date")
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise StorageError(_refusal(self.address)) from None
            raise StorageError(f"{self.address}{path} answers {error.code}") from error
        except (OSError, ValueError) as error:
            raise StorageError(
                f"no Ray dashboard answers at {self.address} ({error}); is the cluster up "
                "(ray start --head, ray up cluster/aws.yaml), and on Kubernetes the port "
                "forwarded (kubectl port-forward service/clippo-head-svc 8265)?"
            ) from error

    def release_mismatch(self) -> str | None:
        """Return advice if the cluster runs another Ray release than this machine, else None.

        The first two numbers of a version are its release.
        """
        import ray  # here, because the doctor also looks at machines that lack it

        ours, theirs = ray.__version__, str(self._ask("/api/version")[0]["ray_version"])
        if ours.split(".")[:2] == theirs.split(".")[:2]:
            return None
        return (
            f"the cluster at {self.address} runs Ray {theirs}, here is {ours}; they must be of one "
            f"release: pip install ray=={theirs} here, or build the cluster's image with {ours} "
            "(docker build --build-arg RAY=…)"
        )

    def python_version(self) -> str:
        """Return the version of Python on the head."""
        return str(self._ask("/api/v0/cluster_metadata")[0]["data"]["pythonVersion"])

    def clock_skew_s(self) -> float:
        """Return how far the head's clock is from this machine's, to about a second."""
        said = self._ask("/api/version")[1]
        return 0.0 if said is None else abs(parsedate_to_datetime(said).timestamp() - time.time())

    def nodes(self) -> list[Node]:
        """Return the living machines."""
        answer, _ = self._ask("/api/v0/nodes?detail=1&limit=10000")
        return [
            Node(
                node["node_ip"],
                node.get("labels") or {},
                node["resources_total"],
                bool(node.get("is_head_node")),
            )
            for node in answer["data"]["result"]["result"]
            if node["state"] == "ALIVE"
        ]

    def is_this_machine(self) -> bool:
        """Return True if the cluster is this machine alone, so that paths mean the same there."""
        own = {found.address for of_one in net_if_addrs().values() for found in of_one}
        return all(node.host in own for node in self.nodes())


def _refusal(address: str) -> str:
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    if not is_token_mode():
        what = f"it wants a token, and RAY_AUTH_MODE is {mode}; unset it, or set it to token"
    elif auth_token() is None:
        what = f"it wants a token, and there is none in RAY_AUTH_TOKEN or {token_path()}"
    else:
        of = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else str(token_path())
        what = f"the token in {of} is not the cluster's"
    return (
        f"the cluster at {address} refuses: {what}. Take the token from the head (ray "
        "get-auth-token) or the Kubernetes Secret (cluster/README.md, Authentication), and put "
        "it into a file that RAY_AUTH_TOKEN_PATH names"
    )
