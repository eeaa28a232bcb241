"""The Helm chart and the plain manifests in cluster/kubernetes/, rendered by Helm and held against schemas.

No cluster runs here: the schemas are those of Kubernetes and of Dask's operator.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import psutil
import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

import dal
from tests import containers
from tests.conftest import missing_service
from tests.deployment import HELM, TOOLS
from tests.recipes import ROOT, block_with

FOLDER = ROOT / "cluster" / "kubernetes"
CORE = "kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict"
Object = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    if not (TOOLS / "fetched").exists():
        missing_service(f"Helm and the schemas in {TOOLS} (.ci/deployment)")


# -- Helm, and the schemas ---------------------------------------------------------------------------------------------

_HELM = """
import json, sys
import helm_python as helm

def rendered(chart, values):
    wrong = [each for each in helm.lint(chart, values, strict=True)["messages"] if each["severity"] > 1]
    assert not wrong, wrong
    with helm.Chart.load(chart) as loaded:
        loaded.validate_schema(values)
        return "---".join(
            f"\\n# {name}\\n{text}" for name, text in sorted(loaded.render(values, name="dal", namespace="dal").items())
        )

def tried(chart, values):
    try:
        return [rendered(chart, values), None]
    except Exception as error:
        return [None, str(error)]

print(json.dumps([tried(*job) for job in json.load(sys.stdin)]))
"""


def helm(*jobs: tuple[Path, Mapping[str, object]]) -> list[tuple[str | None, str | None]]:
    """Lint and render charts with values, in one process of its own: Helm is a library of Go's; texts and errors."""
    asked = json.dumps([(str(chart), values) for chart, values in jobs])
    command = [sys.executable, "-c", _HELM]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(HELM)}, input=asked, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return [(text, error) for text, error in json.loads(done.stdout)]


def rendered_with(values: Mapping[str, object]) -> str:
    ((text, error),) = helm((FOLDER / "chart", values))
    assert text is not None, error
    return text


def objects(text: str) -> list[Object]:
    return [each for each in yaml.load_all(text, Loader=yaml.CSafeLoader) if each]


@cache
def wheel(name: str) -> ZipFile:
    (path,) = TOOLS.glob(f"{name}-*.whl")
    return ZipFile(path)


@cache
def operator_schemas() -> dict[tuple[str, str], Object]:
    """The schemas of the operator's kinds, by version and kind, with unknown fields refused.

    A cluster drops an unknown field silently, so that a typo in its name would go unnoticed.
    """
    found = {}
    for name in wheel("dask_kubernetes").namelist():
        if re.search(r"/crds/[^/]+\.yaml$", name):
            for each in objects(wheel("dask_kubernetes").read(name).decode()):
                group, kind = each["spec"]["group"], each["spec"]["names"]["kind"]
                for version in each["spec"]["versions"]:
                    schema = closed(version["schema"]["openAPIV3Schema"])
                    schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}
                    found[f"{group}/{version['name']}", kind] = schema
    return found


@cache
def core_schema(name: str) -> Object | None:
    archive, path = wheel("kubernetes_validate"), f"{CORE}/{name}.json"
    return json.loads(archive.read(path)) if path in archive.NameToInfo else None


@cache
def core_definitions() -> Resource:
    return Resource.from_contents(core_schema("_definitions"))


def closed(schema: Any) -> Any:  # noqa: ANN401 - any value of JSON
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    below = {key: closed(value) for key, value in schema.items()}
    if "properties" in below and not below.get("x-kubernetes-preserve-unknown-fields"):
        below.setdefault("additionalProperties", False)
    if below.pop("x-kubernetes-int-or-string", None):
        below["type"] = ["integer", "string"]
    return below


def problems(manifest: Object) -> list[str]:
    """Return what is wrong with an object, by the schema of its kind."""
    version, kind = manifest["apiVersion"], manifest["kind"]
    registry = Registry()
    if "dask.org" in version:
        schema = operator_schemas().get((version, kind))
    else:
        group, _, number = version.rpartition("/")
        schema = core_schema(f"{kind.lower()}-{group.split('.')[0]}{'-' if group else ''}{number}")
        registry = core_definitions() @ registry
    if schema is None:
        return [f"no kind {kind} in {version}"]
    found = Draft202012Validator(schema, registry=registry).iter_errors(manifest)
    return [f"{each.json_path}: {each.message}" for each in found]


@pytest.fixture(scope="module")
def rendered(tools: None) -> str:
    return rendered_with({})


# -- the objects -------------------------------------------------------------------------------------------------------


def test_every_object_is_valid(rendered: str) -> None:
    found = objects(rendered)
    assert {each["kind"] for each in found} == {
        "DaskAutoscaler", "DaskCluster", "NetworkPolicy", "PodDisruptionBudget", "Service", "StatefulSet"
    }  # fmt: skip
    assert {f"{each['kind']} {each['metadata']['name']}": problems(each) for each in found if problems(each)} == {}


def test_every_value_has_its_place() -> None:
    values = {
        "image": "registry.example.org/dal:1.2.3",
        "imagePullSecrets": ["pull"],
        "credentials": ["of-store", "of-database"],
        "tlsSecret": "of-tls",
        "worker": {"maximum": 7, "memory": "613Mi", "cpu": "2"},
        "scheduler": {"memory": "5Gi", "cpu": "3"},
        "campaign": {"memory": "9Gi", "cpu": "4", "storage": "33Gi", "storageClass": "fast"},
        "trustProxy": "10.9.0.0/16",
        "operatorNamespace": "operators",
    }
    text = rendered_with(values)
    assert [problems(each) for each in objects(text) if problems(each)] == []
    words = json.dumps(objects(text))
    named = (
        "registry.example.org/dal:1.2.3 pull of-store of-database of-tls 613Mi 5Gi 9Gi 33Gi fast 10.9.0.0/16 operators"
    )
    for value in named.split():
        assert f'"{value}"' in words
    assert '"maximum": 7' in words
    assert "dal:0.1.0" not in words


def test_the_plain_manifests_are_those_of_the_chart(rendered: str) -> None:
    assert objects((FOLDER / "dal.yaml").read_text()) == objects(rendered)


TYPOS = [
    ("cluster.yaml", "replicas: 0", "replica: 0"),
    ("cluster.yaml", "minimum: 0", 'minimum: "0"'),
    ("cluster.yaml", "kind: DaskAutoscaler", "kind: DaskAutoScaler"),
    ("cluster.yaml", "readinessProbe:", "readynessProbe:"),
    ("cluster.yaml", "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 30s"),
    ("cluster.yaml", "containerPort: 8788", "containerPort: http"),
    ("_helpers.tpl", "secretRef:", "secretref:"),
    ("_helpers.tpl", "secretName:", "secretname:"),
    ("_helpers.tpl", "readOnly: true", "readonly: true"),
    ("_helpers.tpl", '  value: "true"', "  value: true"),
    ("_helpers.tpl", "readOnlyRootFilesystem: true", "readOnlyRootFileSystem: true"),
    ("_helpers.tpl", "  requests:", "  request:"),
    ("campaign.yaml", "volumeClaimTemplates:", "volumeClaimTemplate:"),
    ("campaign.yaml", "kind: StatefulSet", "kind: StatefullSet"),
    ("disruptions.yaml", "maxUnavailable", "maxUnavailble"),
    ("disruptions.yaml", "policy/v1", "policy/v1beta1"),
    ("network.yaml", "policyTypes: [Ingress]", "policyTypes: Ingress"),
    ("network.yaml", "- namespaceSelector:", "- nameSpaceSelector:"),
]


def test_typos_are_caught(tmp_path: Path) -> None:
    jobs = []
    for number, (file, right, wrong) in enumerate(TYPOS):
        chart = tmp_path / str(number)
        shutil.copytree(FOLDER / "chart", chart)
        template = chart / "templates" / file
        text = template.read_text()
        assert right in text
        template.write_text(text.replace(right, wrong))
        jobs.append((chart, {"tlsSecret": "dal-tls"}))
    caught = [error or [each for found in objects(text) for each in problems(found)] for text, error in helm(*jobs)]
    assert [typo for typo, found in zip(TYPOS, caught, strict=True) if not found] == []


def test_values_are_checked() -> None:
    wrong = [
        {"worker": {"memry": "1Gi"}},
        {"worker": {"memory": "1 GB"}},
        {"worker": {"memory": "0Mi"}},  # of a prediction that failed
        {"image": "dal:latest"},
        {"tlsSecret": True},
        {"wrker": {}},
    ]
    for values, (_, error) in zip(wrong, helm(*((FOLDER / "chart", each) for each in wrong)), strict=True):
        assert error is not None, values
        assert "schema" in error


# -- what the objects say to each other --------------------------------------------------------------------------------


def pods(found: list[Object]) -> Iterator[tuple[dict[str, str], Object]]:
    """The pods that there will be, by their labels: that of the campaign, and those that the operator makes."""
    for each in found:
        if each["kind"] == "StatefulSet":
            yield each["spec"]["template"]["metadata"]["labels"], each["spec"]["template"]["spec"]
        if each["kind"] == "DaskCluster":
            for component in ("scheduler", "worker"):
                # as dask_kubernetes.operator.controller labels them
                labels = {"dask.org/cluster-name": each["metadata"]["name"], "dask.org/component": component}
                yield labels, each["spec"][component]["spec"]


def selected(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    return selector.get("matchLabels", selector).items() <= labels.items()


def test_every_selector_finds_one_kind_of_pod(rendered: str) -> None:
    found = objects(rendered)
    kinds = [labels for labels, _ in pods(found)]
    selectors = {
        f"{each['kind']} {each['metadata']['name']}": each["spec"].get("podSelector", each["spec"].get("selector"))
        for each in found
        if each["kind"] in {"NetworkPolicy", "PodDisruptionBudget", "Service", "StatefulSet"}
    }
    (cluster,) = (each for each in found if each["kind"] == "DaskCluster")
    selectors["of the scheduler"] = cluster["spec"]["scheduler"]["service"]["selector"]
    assert {name: sum(selected(each, labels) for labels in kinds) for name, each in selectors.items()} == dict.fromkeys(
        selectors, 1
    )
    guarded = [each["spec"]["podSelector"] for each in found if each["kind"] == "NetworkPolicy"]
    assert all(any(selected(each, labels) for each in guarded) for labels in kinds)
    for policy in (each for each in found if each["kind"] == "NetworkPolicy"):
        for peer in (peer for rule in policy["spec"]["ingress"] for peer in rule.get("from", [])):
            assert "namespaceSelector" in peer or any(selected(peer["podSelector"], labels) for labels in kinds)


def test_every_pod_is_without_rights(rendered: str) -> None:
    for _, pod in pods(objects(rendered)):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        volumes = {each["name"] for each in pod["volumes"]} | {"campaign"}
        for container in pod["containers"]:
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"]
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert not rights["allowPrivilegeEscalation"]
            resources = container["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"]
            mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
            assert "/tmp" in mounts
            assert set(mounts.values()) <= volumes
            ports = {each["name"] for each in container.get("ports", [])}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container.get(probe, {}).get("httpGet", {}).get("port") in {None, *ports}


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encrypted(tools: None) -> list[Object]:
    return objects(rendered_with({"tlsSecret": "dal-tls"}))


def test_only_the_parts_of_the_cluster_hold_its_certificate(encrypted: list[Object]) -> None:
    assert [problems(each) for each in encrypted if problems(each)] == []
    assert "tcp://" not in json.dumps(encrypted)
    holders = set()
    for _, pod in pods(encrypted):
        (volume,) = (each for each in pod["volumes"] if each["name"] == "certificates")
        assert volume["secret"] == {"secretName": "dal-tls", "defaultMode": 0o440}
        for container in pod["containers"]:
            mounts = {each["name"]: each for each in container["volumeMounts"]}
            if "certificates" in mounts:
                assert mounts["certificates"] == {
                    "name": "certificates",
                    "mountPath": "/certificates",
                    "readOnly": True,
                }
                holders.add(container["name"])
    assert holders == {"scheduler", "worker", "coordinator"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_commands_of_the_chart_speak_tls(encrypted: list[Object], tmp_path: Path) -> None:
    containers.needed("unshare", "nsenter", "setpriv", "ip")
    image = containers.built()
    volumes = {f"/{name}": tmp_path / name for name in ("campaign", "certificates", "data")}
    found = {each["name"]: each for _, pod in pods(encrypted) for each in pod["containers"]}
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(containers.machine(image, tmp_path, ["dal-scheduler"], volumes))
        secret_of_the_recipe(volumes["/certificates"], tmp_path / "authority")
        rng = np.random.default_rng(3)
        dal.Pool.build(rng.normal(size=(2000, 4)).astype(np.float32), volumes["/data"] / "pool.zarr")

        def start(name: str) -> psutil.Process:
            # as the operator does
            words = [word.replace("$(DASK_WORKER_NAME)", "dal-default-worker-1") for word in found[name]["args"]]
            return stack.enter_context(host.running(words, variables(found[name]), tmp_path / name))

        for name in ("scheduler", "worker"):
            process = start(name)
            while host.run(image.health, {"DAL_HEALTH": f"http://127.0.0.1:{probe(found[name])}"}).returncode:
                assert process.is_running(), (tmp_path / name).read_text()
        made = host.run(["dal", "init", "/campaign", "/data/pool.zarr", "--classes", "ham,spam"])
        assert made.returncode == 0, made.stderr
        plain = host.run(["dal", "next", "/campaign", "--scheduler", "tcp://dal-scheduler:8786"])
        assert plain.returncode != 0
        assert "speaks TLS" in plain.stderr
        coordinator = start("coordinator")
        while "Round 1 is open" not in (tmp_path / "coordinator").read_text():
            assert coordinator.is_running(), (tmp_path / "coordinator").read_text()
            time.sleep(0.1)  # polls what cannot tell us
    assert "Traceback" not in (tmp_path / "coordinator").read_text()


def secret_of_the_recipe(folder: Path, authority: Path) -> None:
    """Make the entries of the README's secret, with the certificates of cluster/tls."""
    if shutil.which("openssl") is None:
        missing_service("openssl")
    environment = os.environ | {"CERTIFICATES": str(authority)}
    block = block_with("cluster/tls", "openssl req")
    subprocess.run(["bash", "-euc", block], env=environment, check=True, capture_output=True)
    entries = re.findall(r"--from-file=(\S+)=certificates/(\S+)", block_with("cluster/kubernetes", "dal-tls"))
    assert {entry for entry, _ in entries} == {"tls.crt", "tls.key", "ca.crt"}
    for entry, file in entries:
        shutil.copy(authority / file, folder / entry)
        (folder / entry).chmod(0o440)
        os.chown(folder / entry, 0, folder.stat().st_gid)


def variables(container: Object) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


def probe(container: Object) -> str:
    """Return the port and the path at which the kubelet asks whether a container is well."""
    asked = container["livenessProbe"]["httpGet"]
    (port,) = (each["containerPort"] for each in container["ports"] if each["name"] == asked["port"])
    return f"{port}{asked['path']}"


@pytest.mark.slow
def test_the_memory_of_a_worker_comes_from_the_doctor(tmp_path: Path) -> None:
    X = np.random.default_rng(3).normal(size=(5000, 8)).astype(np.float32)
    dal.Pool.build(X, tmp_path / "pool.zarr")
    block = block_with("cluster/kubernetes", "dal doctor") + '\necho "$memory"\n'
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"POOL": str(tmp_path / "pool.zarr"), "PATH": path}
    done = subprocess.run(["bash", "-euc", block], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    memory = done.stdout.strip()
    assert 350 * 5 // 4 < int(memory.removesuffix("Mi")) < 700
    found = objects(rendered_with({"worker": {"memory": memory}}))
    (cluster,) = (each for each in found if each["kind"] == "DaskCluster")
    (worker,) = cluster["spec"]["worker"]["spec"]["containers"]
    assert worker["resources"]["requests"]["memory"] == memory
    assert worker["resources"]["limits"]["memory"] == memory
