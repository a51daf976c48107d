"""Make definitions.json.gz out of KubeRay's resource definitions, without their descriptions.

    python make_definitions.py ray.io_rayclusters.yaml ray.io_rayjobs.yaml

The files lie in KubeRay's repository, ray-operator/config/crd/bases (here: commit feeaf72fa).
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml


def without_descriptions(schema: Any) -> Any:
    if isinstance(schema, list):
        return [without_descriptions(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_descriptions(value)
        for key, value in schema.items()
        if not (key == "description" and isinstance(value, str))
    }


def definitions(files: list[Path]) -> dict[str, Any]:
    found = {}
    for file in files:
        content = file.read_bytes()
        definition = yaml.safe_load(gzip.decompress(content) if file.suffix == ".gz" else content)
        (stored,) = [v for v in definition["spec"]["versions"] if v["storage"]]
        name = (
            f"{definition['spec']['group']}/{stored['name']}/{definition['spec']['names']['kind']}"
        )
        found[name] = without_descriptions(stored["schema"]["openAPIV3Schema"])
    return found


if __name__ == "__main__":
    content = json.dumps(definitions([Path(name) for name in sys.argv[1:]])).encode()
    target = Path(__file__).with_name("definitions.json.gz")
    target.write_bytes(gzip.compress(content, 9, mtime=0))
    print(target)
