"""The variables that a job gets from this shell, open or sealed, and secrets that stay."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from clippo_core.errors import ConfigError
from cluster.dashboard import auth_token, is_token_mode

#: Variables that name places; they are shown, since people who look into a job want to see them.
PLACES = (
    "CLIPPO_DATA",
    "MLFLOW_TRACKING_URI",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
#: Variables with the credentials for those places.
SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)
_NEVER = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_PASSWORD_IN_URL = re.compile(r"://[^/@\s]+:[^/@\s]+@")
#: Fewest characters of a value that is looked for; shorter ones occur in a text by chance.
_SECRET_CHARS = 8


@dataclass(frozen=True)
class JobEnvironment:
    """The environment variables of a job.

    Attributes:
        places: variables that are shown to all.
        secrets: variables that travel sealed.
        notes: reasons why variables of this shell stay here.
    """

    places: Mapping[str, str]
    secrets: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return the names of the variables, never the values."""
        return (
            f"environment: {' '.join(self.places) or 'none'}; "
            f"sealed: {' '.join(self.secrets) or 'none'}"
        )


def job_environment(names: Sequence[str], *, is_here: bool) -> JobEnvironment:
    """Return the variables of this shell that a job gets.

    Args:
        names: variables that the person asked for, beside `PLACES` and `SECRETS`.
        is_here: True if the job will run on this machine.

    Raises:
        ConfigError: if a name is not valid, not set, or its value cannot be sealed.
    """
    _check_names(names)
    places: dict[str, str] = {}
    notes: list[str] = []
    for name in PLACES:
        value = os.environ.get(name)
        if not value or name in names:
            continue
        if not is_here and _names_this_machine(value):
            notes.append(f"{name}={value} is of this machine and stays here")
        else:
            places[name] = value
    if os.environ.get("AWS_PROFILE") and not is_here:
        notes.append("AWS_PROFILE stays here: its file is on this machine alone")
    secrets = {n: os.environ[n] for n in (*SECRETS, *names) if os.environ.get(n) or n in names}
    if secrets and not (is_token_mode() and auth_token()):
        if names:
            raise ConfigError(
                f"--env {' '.join(names)} cannot be sealed without the cluster's token "
                "(RAY_AUTH_MODE token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH), and Ray would "
                "show the values in its dashboard and logs. Set them in the environment of the "
                "nodes instead"
            )
        notes.append(f"without a token nothing can be sealed: {' '.join(secrets)} stay here")
        secrets = {}
    return JobEnvironment(places, secrets, tuple(notes))


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if "=" in name:
            raise ConfigError(
                f"--env takes names, not values ({name.partition('=')[0]}=…): a command line can "
                "be read by others on this machine. Export the variable, and pass its name"
            )
        if name in _NEVER:
            raise ConfigError(f"--env {name}: the cluster's token is not given to jobs")
        if name not in os.environ:
            raise ConfigError(f"--env {name}: no such variable is set here; export it first")


def _names_this_machine(value: str) -> bool:
    """Return True if a place is a path, or a server on the loopback address."""
    host = urlsplit(value).hostname or ""
    is_loopback = host in ("localhost", "::1") or host.startswith("127.")
    return is_loopback or value.startswith(("/", ".", "~", "sqlite:"))


def refuse_secrets(words: Sequence[str], package: bytes, environment: JobEnvironment) -> None:
    """Make sure that no secret is on the command line, in an address, or in the packed code.

    Raises:
        ConfigError: naming the variable and the place, not the value.
    """
    if any(map(_PASSWORD_IN_URL.search, (*words, *environment.places.values()))):
        raise ConfigError(
            "an address holds a password (…://NAME:PASSWORD@…), and addresses are kept with "
            "the run; use the variables for it, such as MLFLOW_TRACKING_USERNAME and _PASSWORD"
        )
    long = {n: v for n, v in environment.secrets.items() if len(v) >= _SECRET_CHARS}
    for name, value in long.items():
        if any(value in word for word in words):
            raise ConfigError(f"the value of {name} is in the command; commands are kept and shown")
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        for file in archive.namelist():
            content = archive.read(file)
            for name, value in long.items():
                if value.encode() in content:
                    raise ConfigError(f"the value of {name} is in {file}, which would be uploaded")
