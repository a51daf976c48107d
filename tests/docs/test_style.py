"""The rules of CONTRIBUTING that can be counted."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("clippo_core", "pipelines", "cluster")
MAX_FUNCTION_LINES = 80


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for package in (*PACKAGES, "tests"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def test_no_function_is_longer_than_eighty_lines():
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions()}
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES} == {}


def modules() -> list[ModuleType]:
    found = []
    for package in PACKAGES:
        for info in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if not info.name.endswith("__main__"):
                found.append(importlib.import_module(info.name))
    return found


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_every_public_name_has_a_docstring(module: ModuleType):
    assert module.__doc__, module.__name__
    for name, value in vars(module).items():
        is_ours = getattr(value, "__module__", None) == module.__name__
        if name.startswith("_") or not is_ours or not (inspect.isclass(value) or callable(value)):
            continue
        if not inspect.isclass(value) and not hasattr(value, "__name__"):
            continue  # a type alias or the like
        assert inspect.getdoc(value), f"{module.__name__}.{name}"
        if inspect.isclass(value):
            check_methods(value)


def check_methods(kind: type) -> None:
    for name, value in vars(kind).items():
        if name.startswith("_") or (not callable(value) and not isinstance(value, property)):
            continue
        is_default = getattr(value, "__name__", "") == "<lambda>"
        if name == "forward" or inspect.isclass(value) or is_default:
            continue  # its class says what it computes
        assert inspect.getdoc(getattr(kind, name)), f"{kind.__qualname__}.{name}"


def test_every_setting_has_a_docstring():
    from clippo_core import config
    from pipelines.config import settings
    from pipelines.datasets import manifest

    for module in (config, settings, manifest):
        tree = ast.parse(Path(module.__file__ or "").read_text())
        for node in ast.walk(tree):
            is_settings = isinstance(node, ast.ClassDef) and any(
                getattr(base, "id", "") == "Config" for base in node.bases
            )
            if is_settings:
                for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                    if isinstance(field, ast.AnnAssign):
                        assert isinstance(after, ast.Expr), f"{node.name}.{ast.unparse(field)}"
