"""Ray's dashboard, the door of a cluster: where it is, the token that opens it, who is behind."""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clippo_core.errors import ConfigError, StorageError

#: What this code is made for, as in requirements.txt.
RAY_RELEASE = "2.60."
LOCAL_DASHBOARD = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_TIMEOUT_S = 10.0


def use_token_mode() -> None:
    """Identify ourselves by the cluster's token, unless the person set RAY_AUTH_MODE."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")


def is_token_mode() -> bool:
    """Whether Ray is to identify itself by its token."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def token_path() -> Path:
    """The file of the token, where RAY_AUTH_TOKEN does not hold the token itself."""
    default = Path.home() / ".ray" / "auth_token"
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or default).expanduser()


def auth_token() -> str | None:
    """The token, from where Ray takes it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

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
    """What identifies us to a dashboard."""
    token = auth_token() if is_token_mode() else None
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def dashboard_address(given: str | None) -> str:
    """The dashboard's URL: as given, as the environment says, or this machine's.

    Raises:
        StorageError: if a cluster is named by another address and does not answer there.
    """
    named = given or next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), LOCAL_DASHBOARD)
    if named.startswith(("http://", "https://")):
        return named.rstrip("/")
    # Ray's own addresses (auto, HOST:6379): the cluster itself says where its dashboard is.
    from ray.dashboard.utils import get_address_for_submission_client

    try:
        found = get_address_for_submission_client(named)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        raise StorageError(
            f"no cluster answers at {named}: {error}; name its dashboard, such as "
            f"--address {LOCAL_DASHBOARD}"
        ) from error
    return found if "://" in found else f"http://{found}"


def is_loopback(url: str) -> bool:
    """Whether a URL names the machine that it is used on."""
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


@dataclass(frozen=True)
class Place:
    """Where the job will run.

    Attributes:
        address: of the dashboard.
        is_here: whether the cluster is this machine alone, so that paths mean the same there.
    """

    address: str
    is_here: bool


@dataclass(frozen=True)
class Node:
    """A living machine of a cluster."""

    host: str
    labels: dict[str, str]
    resources: dict[str, float]
    is_head: bool

    @property
    def role(self) -> str:
        """head, renderer, trainer, evaluator; or "unlabelled"."""
        return "head" if self.is_head else self.labels.get("clippo.role", "unlabelled")


@dataclass(frozen=True)
class Dashboard:
    """A cluster's dashboard."""

    address: str

    def ask(self, path: str) -> Any:
        """JSON from the dashboard.

        Raises:
            StorageError: if it does not answer, or refuses the token.
        """
        return self._fetch(path)[0]

    def _fetch(self, path: str) -> tuple[Any, str | None]:
        """JSON, and the time that the answer says it was given."""
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

    def ray_version(self) -> str:
        """Of the cluster."""
        return str(self.ask("/api/version")["ray_version"])

    def python_version(self) -> str:
        """Of the head."""
        return str(self.ask("/api/v0/cluster_metadata")["data"]["pythonVersion"])

    def clock_skew_s(self) -> float:
        """How far the head's clock is from this machine's, to about a second."""
        said = self._fetch("/api/version")[1]
        if said is None:
            return 0.0
        return abs(parsedate_to_datetime(said).timestamp() - time.time())

    def nodes(self) -> list[Node]:
        """The living machines."""
        listed = self.ask("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
        return [
            Node(
                node["node_ip"],
                node.get("labels") or {},
                node["resources_total"],
                bool(node.get("is_head_node")),
            )
            for node in listed
            if node["state"] == "ALIVE"
        ]

    def is_this_machine(self) -> bool:
        """Whether the cluster is this machine alone: paths mean the same there."""
        return all(_is_own_address(node.host) for node in self.nodes())


def _is_own_address(host: str) -> bool:
    """Whether an IP address is one of this machine's: only those can be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
        return True


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
