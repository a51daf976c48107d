"""The manifests are what KubeRay, Kubernetes, Ray's launcher and Compose take, and closed."""

from __future__ import annotations

import copy
import gzip
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

CLUSTER = Path(__file__).parents[2] / "cluster"
KUBERNETES = "1.33"
#: KubeRay's definitions; tests/deployment/kuberay/make_definitions.py says where from.
DEFINITIONS = Path(__file__).parent / "kuberay" / "definitions.json.gz"


@cache
def definitions() -> dict[str, Any]:
    return json.loads(gzip.decompress(DEFINITIONS.read_bytes()))


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def document(name: str, kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents(name) if document["kind"] == kind]
    return found


def unknown_fields(value: Any, schema: dict[str, Any], where: str) -> list[str]:
    """Return fields that the definition lacks: the API server would drop them in silence."""
    if schema.get("x-kubernetes-preserve-unknown-fields") or where == "metadata":
        return []
    if isinstance(value, list):
        parts = [unknown_fields(v, schema.get("items", {}), f"{where}[]") for v in value]
        return [field for part in parts for field in part]
    if not isinstance(value, dict):
        return []
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    found = []
    for key, inner in value.items():
        path = f"{where}.{key}".lstrip(".")
        if key in known:
            found += unknown_fields(inner, known[key], path)
        elif isinstance(others, dict):
            found += unknown_fields(inner, others, path)
        elif not others:
            found.append(path)
    return found


def faults(manifest: dict[str, Any]) -> list[str]:
    schema = definitions()[f"{manifest['apiVersion']}/{manifest['kind']}"]
    errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [error.message for error in errors] + unknown_fields(manifest, schema, "")


def cluster() -> dict[str, Any]:
    return document("raycluster.yaml", "RayCluster")["spec"]


def launcher() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "aws.yaml").read_text())


def pod_templates() -> list[dict[str, Any]]:
    submitter = document("rayjob.yaml", "RayJob")["spec"]["submitterPodTemplate"]
    groups = [cluster()["headGroupSpec"], *cluster()["workerGroupSpecs"]]
    return [submitter, *(group["template"] for group in groups)]


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_takes_the_manifest(name: str):
    (manifest,) = documents(name)
    assert faults(manifest) == []


def test_an_invented_field_and_a_wrong_type_are_found():
    manifest = copy.deepcopy(document("raycluster.yaml", "RayCluster"))
    manifest["spec"]["workerGroupSpecs"][0]["maximumReplicas"] = 3
    manifest["spec"]["authOptions"]["mode"] = "open"
    assert len(faults(manifest)) == 2


def test_kubernetes_takes_the_pods_and_what_lies_beside_them():
    for template in pod_templates():
        pod = {"apiVersion": "v1", "kind": "Pod", "spec": template["spec"]}
        pod["metadata"] = {"name": "pod", **template["metadata"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    for manifest in documents("kubernetes.yaml"):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_the_job_brings_the_cluster_that_stands_in_the_other_file():
    assert document("rayjob.yaml", "RayJob")["spec"]["rayClusterSpec"] == cluster()


def test_image_and_manifests_name_one_release_of_ray():
    named = re.search(r"^ARG RAY=(.+)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    assert named is not None
    assert cluster()["rayVersion"] == named[1]


def test_the_head_takes_no_work_and_the_workers_say_their_roles():
    assert cluster()["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    labels = {group["groupName"]: group["labels"] for group in cluster()["workerGroupSpecs"]}
    assert labels == {
        "renderer": {"clippo.role": "renderer", "ray-subcluster": "renderer"},
        "trainer": {"clippo.role": "trainer"},
    }


def test_ray_can_read_the_resources_that_it_is_started_with():
    for group in cluster()["workerGroupSpecs"]:
        quoted = group["rayStartParams"].get("resources")
        if quoted is not None:
            # The operator pastes it into a shell command.
            said = subprocess.run(["sh", "-c", f"printf %s {quoted}"], capture_output=True)
            assert json.loads(said.stdout) == {group["groupName"]: 1}


def test_every_cluster_wants_the_token():
    assert cluster()["authOptions"] == {"mode": "token"}
    for kind in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert launcher()[kind][1].startswith("RAY_AUTH_MODE=token ray start ")


def test_nothing_listens_to_the_world():
    text = "".join(path.read_text() for path in CLUSTER.glob("*.yaml"))
    assert not re.search(r"LoadBalancer|NodePort|enableIngress|0\.0\.0\.0/0|hostNetwork", text)
    assert "--dashboard-host=127.0.0.1" in launcher()["head_start_ray_commands"][1]
    (permission,) = launcher()["provider"]["security_group"]["IpPermissions"]
    assert permission["FromPort"] == permission["ToPort"] == 22
    services = compose()["services"]
    assert [name for name, service in services.items() if service.get("ports")] == ["mlflow"]
    policy = document("kubernetes.yaml", "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    for template in pod_templates():
        assert (
            policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        )


def test_containers_run_as_nobody_special():
    for template in pod_templates():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]["memory"]


def test_the_object_store_of_every_ray_pod_is_memory():
    for template in pod_templates()[1:]:
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        (container,) = template["spec"]["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


def test_no_manifest_holds_a_secret():
    name = re.compile(r"(?i)(password|secret|token)\w*['\"]?\s*[:=]\s*(.*)")
    allowed = re.compile(r"\$\{|^\{?name:|^$|clippo-|required|~/|^false|token ray")
    for path in (*CLUSTER.glob("*.yaml"), CLUSTER / "Dockerfile"):
        for line in path.read_text().splitlines():
            found = name.search(line.partition("#")[0])
            assert found is None or allowed.search(found[2]), f"{path.name}: {line}"


def test_rays_launcher_takes_the_aws_cluster():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(launcher())
    validate_config(config)
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["renderer"]["labels"]["ray-subcluster"] == "renderer"


def compose() -> dict[str, Any]:
    """Return the Compose file, with its variables filled in by Compose's rules."""
    pattern = r"\$\{\w+(?::([-?])([^}]*))?\}"
    text = (CLUSTER / "mlflow-compose.yaml").read_text()
    filled = re.sub(pattern, lambda match: match[2] if match[1] == "-" else "secret", text)
    return PyCompose.from_yaml(filled).to_dict()


def test_compose_takes_the_mlflow_server_and_binds_it_to_this_machine():
    mlflow = compose()["services"]["mlflow"]
    assert "127.0.0.1" in str(mlflow["ports"])
    assert "5000" in str(mlflow["ports"])
    assert mlflow["build"]["target"] == "mlflow"


def test_the_store_has_the_bucket_that_the_mlflow_server_writes_to():
    services = compose()["services"]
    bucket = re.search(r"--artifacts-destination s3://(\S+)", str(services["mlflow"]["command"]))
    assert bucket is not None
    assert services["store"]["volumes"] == [f"artifacts:/data/{bucket[1]}"]


def test_the_dockerfile_has_the_targets_and_no_fault():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, CLUSTER / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    targets = re.findall(r"^FROM \S+ AS (\S+)$", (CLUSTER / "Dockerfile").read_text(), re.M)
    assert {"cpu", "gpu", "mlflow"} <= set(targets)
