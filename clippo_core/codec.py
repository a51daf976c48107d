"""Settings to JSON and back. Unknown keys, wrong types and contradictions are refused by name."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from clippo_core.config import Config
from clippo_core.errors import ConfigError

C = TypeVar("C", bound=Config)


def to_dict(config: Config) -> dict[str, Any]:
    """Nested dicts and lists that JSON can hold."""
    return TypeAdapter(type(config)).dump_python(config, mode="json")


def to_json(config: Config) -> str:
    """Indented JSON, keys in the order of the fields."""
    return json.dumps(to_dict(config), indent=2, ensure_ascii=False) + "\n"


def from_json(kind: type[C], text: str | bytes, *, where: str) -> C:
    """Read settings.

    Args:
        kind: the class to make.
        text: a JSON object; missing keys take their defaults.
        where: named in the error, a file name for instance.

    Raises:
        ConfigError: naming each key that is unknown or holds something unexpected.
    """
    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        problems = [f"  {_path(e)}: {e['msg']}" for e in error.errors(include_url=False)]
        raise ConfigError(
            f"{where} is not a valid {kind.__name__}:\n" + "\n".join(problems)
        ) from None


def _path(error: Any) -> str:
    return ".".join(str(part) for part in error["loc"]) or "the file"
