"""Which variables of this shell a job gets, which of them sealed, and what must never travel."""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clippo_core.errors import ConfigError
from cluster.dashboard import Place, auth_token, is_loopback, is_token_mode

#: Where things are: shown, since a person who looks into a job wants to see them.
PLACES = (
    "CLIPPO_DATA",
    "MLFLOW_TRACKING_URI",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
#: What opens them.
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
#: Shorter values occur by chance.
_SECRET_CHARS = 8


@dataclass(frozen=True)
class JobEnvironment:
    """Variables of a job.

    Attributes:
        places: shown to all.
        secrets: sealed.
        notes: on variables of this shell that stay here, and why.
    """

    places: Mapping[str, str]
    secrets: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """The names, never the values."""
        return (
            f"environment: {' '.join(self.places) or 'none'}; "
            f"sealed: {' '.join(self.secrets) or 'none'}"
        )


def job_environment(names: Sequence[str], place: Place) -> JobEnvironment:
    """What the job gets of this shell's environment.

    Args:
        names: that the person asked for, beside `PLACES` and `SECRETS`.
        place: of the job.

    Raises:
        ConfigError: if a name is not set, is none, or cannot be sealed.
    """
    _check_names(names)
    found = {name: os.environ[name] for name in PLACES if os.environ.get(name)}
    asked = {name: os.environ[name] for name in names}
    here = {
        name: value
        for name, value in found.items()
        if name not in asked and not place.is_here and _names_this_machine(value)
    }
    notes = [f"{name}={value} is of this machine and stays here" for name, value in here.items()]
    usual = {name: os.environ[name] for name in SECRETS if os.environ.get(name)}
    if os.environ.get("AWS_PROFILE") and not place.is_here:
        notes.append("AWS_PROFILE stays here: its file is on this machine alone")
    if (usual or asked) and not (is_token_mode() and auth_token()):
        _check_unsealed(names)
        notes.append(f"without a token nothing can be sealed: {' '.join(usual)} stay here")
        usual = {}
    places = {n: v for n, v in found.items() if n not in here and n not in asked}
    return JobEnvironment(places, usual | asked, tuple(notes))


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


def _check_unsealed(names: Sequence[str]) -> None:
    if names:
        raise ConfigError(
            f"--env {' '.join(names)} cannot be sealed without the cluster's token (RAY_AUTH_MODE "
            "token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH), and Ray would show the values in "
            "its dashboard and logs. Set them in the environment of the nodes instead"
        )


def _names_this_machine(value: str) -> bool:
    is_path = value.startswith(("/", ".", "~", "sqlite:"))
    return is_path or is_loopback(value)


def refuse_secrets(words: Sequence[str], package: bytes, environment: JobEnvironment) -> None:
    """Make sure that no secret is on the command line, in an address, or in the packed code.

    Raises:
        ConfigError: naming the variable and the place, not the value.
    """
    for word in (*words, *environment.places.values()):
        if _PASSWORD_IN_URL.search(word):
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
