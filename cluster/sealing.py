"""Sealing of secrets for a job: encrypted with the cluster's token, opened in its processes.

Ray shows `env_vars` to everyone who may ask the dashboard, writes them into its logs, and passes
them on command lines. The values therefore travel as one sealed text. Whoever holds the token could
start a job and read the environment anyway; whoever holds a log, a backup of it, or a list of
processes reads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping

from cryptography.fernet import Fernet, InvalidToken

from clippo_core.errors import ConfigError
from cluster.dashboard import auth_token

SEALED_VARIABLE = "CLIPPO_SEALED"
#: Function that opens the seal in every worker process: Ray's `worker_process_setup_hook`.
SETUP_HOOK = "cluster.sealing.open_sealed"
_SALT_BYTES = 16


def seal(values: Mapping[str, str], token: str) -> str:
    """Return the values encrypted and signed; only the token opens them."""
    salt = os.urandom(_SALT_BYTES)
    sealed = Fernet(_key(token, salt)).encrypt(json.dumps(dict(values)).encode())
    return f"{base64.urlsafe_b64encode(salt).decode()}.{sealed.decode()}"


def unseal(sealed: str, token: str) -> dict[str, str]:
    """Return the values that were sealed.

    Raises:
        ConfigError: if another token sealed them, or they were changed.
    """
    salt, _, content = sealed.partition(".")
    try:
        key = _key(token, base64.urlsafe_b64decode(salt))
        return json.loads(Fernet(key).decrypt(content.encode()))
    except (InvalidToken, ValueError):
        raise ConfigError(
            "the job's secrets were sealed with another token than this node has; submit the job "
            "again with the cluster's token"
        ) from None


def open_sealed() -> None:
    """Put the sealed values into this process's environment, if there are any.

    Raises:
        ConfigError: if the node has no token, or another.
    """
    sealed = os.environ.get(SEALED_VARIABLE)
    if not sealed:
        return
    token = auth_token()
    if token is None:
        raise ConfigError(
            "the job brings sealed secrets, and this node has no token to open them; start its Ray "
            "with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    os.environ.update(unseal(sealed, token))


def _key(token: str, salt: bytes) -> bytes:
    # scrypt, since nobody keeps people from choosing a short token: each guess costs 50 ms.
    return base64.urlsafe_b64encode(
        hashlib.scrypt(token.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32)
    )
