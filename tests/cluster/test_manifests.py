"""The manifests are what KubeRay accepts, and the mistakes people make are refused."""

import copy
import json
import re
import shlex
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.crd import crd_problems
from tests.cluster.rules import rule_problems

from consomme.base.recipe import load_recipe
from consomme.pipelines.verbs import VERBS, resolve

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY = metadata.version("ray")
MANIFESTS = ("rayjob-score.yaml", "raycluster.yaml")

Manifest = dict[str, Any]


def load(name: str) -> Manifest:
    # A round trip through JSON undoes YAML's anchors, so that a test changes one place only.
    manifest: Manifest = json.loads(json.dumps(yaml.safe_load((CLUSTER / name).read_text())))
    return manifest


def cluster_of(manifest: Manifest) -> Manifest:
    spec: Manifest = manifest["spec"]
    return spec.get("rayClusterSpec", spec)


def groups_of(manifest: Manifest) -> list[Manifest]:
    cluster = cluster_of(manifest)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods_of(manifest: Manifest) -> list[Manifest]:
    return [group["template"]["spec"] for group in groups_of(manifest)]


@pytest.mark.parametrize("name", MANIFESTS)
def test_kuberay_accepts_it(name: str) -> None:
    assert crd_problems(load(name)) == []
    assert rule_problems(load(name), RAY) == []


def test_validation_leaves_the_manifest_alone() -> None:
    manifest = load("raycluster.yaml")
    before = copy.deepcopy(manifest)
    crd_problems(manifest)
    assert manifest == before


def _put(*path: str | int, value: Any) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        node: Any = manifest
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


def _drop(*path: str | int) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        node: Any = manifest
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]

    return change


CLUSTER_SPEC = ("spec", "rayClusterSpec")
WORKER = (*CLUSTER_SPEC, "workerGroupSpecs", 0)
POD = (*WORKER, "template", "spec")
CONTAINER = (*POD, "containers", 0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_put("spec", "entryPoint", value="x"), "spec.entryPoint: unknown field"),
        (_put("spec", "shutdownAfterJobFinish", value=True), "unknown field"),
        (_put("spec", "backoffLimit", value="2"), "spec.backoffLimit: found '2', expected integer"),
        (_put("spec", "shutdownAfterJobFinishes", value=1), "expected boolean"),
        (_put("spec", "backoffLimit", value=2**40), "32-bit"),
        (
            _put(*CLUSTER_SPEC, "autoscalerOptions", "version", value="v3"),
            "autoscalerOptions.version: found 'v3', expected one of v1, v2",
        ),
        (_put(*CLUSTER_SPEC, "authOptions", "mode", value="tokens"), "one of disabled, token"),
        (
            _put(*CLUSTER_SPEC, "headGroupSpec", "rayStartParams", "num-cpus", value=0),
            "headGroupSpec.rayStartParams.num-cpus: found 0, expected string",
        ),
        (_drop(*CLUSTER_SPEC, "headGroupSpec"), "rayClusterSpec.headGroupSpec: missing"),
        (_drop(*WORKER, "groupName"), "workerGroupSpecs[0].groupName: missing"),
        (_drop(*CONTAINER, "name"), "containers[0].name: missing"),
        (_put(*CONTAINER, "env", value=[{"name": "A", "value": 1}]), "found 1, expected string"),
        (_put(*CONTAINER, "resources", "limits", "memory", value="5GiB"), "expected to match"),
        (_put(*CONTAINER, "resources", "limits", "memory", value=1.5), "whole number or a string"),
        (_put(*CONTAINER, "volumeMount", value=[]), "volumeMount: unknown field"),
        (
            _put(*CONTAINER, "volumeMounts", value=[{"name": "data", "mountPath": "/a"}] * 2),
            "twice",
        ),
        (
            _put("spec", "deletionStrategy", value={"deletionRules": [{"policy": "DeleteAll"}]}),
            "expected one of",
        ),
        (_put("apiVersion", value="ray.io/v1alpha1"), "expected 'ray.io/v1'"),
        (_put("kind", value="RayJobs"), "expected RayCluster, RayJob or RayService"),
        (_drop("metadata", "name"), "metadata.name: missing"),
    ],
)
def test_the_schema_refuses(change: Callable[[Manifest], None], problem: str) -> None:
    manifest = load("rayjob-score.yaml")
    change(manifest)
    assert any(problem in text for text in crd_problems(manifest)), crd_problems(manifest)


@pytest.mark.parametrize(
    "change",
    [
        _drop(*WORKER, "minReplicas"),
        _put(*CONTAINER, "resources", "limits", "memory", value=68719476736),
        _put(*WORKER, "template", "metadata", value={"labels": {"team": "data"}}),
    ],
)
def test_the_schema_accepts(change: Callable[[Manifest], None]) -> None:
    """Defaults come first, quantities may be numbers, and open objects stay open."""
    manifest = load("rayjob-score.yaml")
    change(manifest)
    assert crd_problems(manifest) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_put("spec", "submissionMode", value="K8SJobMode"), "none of K8sJobMode"),
        (_put("spec", "submissionMode", value="InteractiveMode"), "must be 0"),
        (_put("spec", "submissionMode", value="SidecarMode"), "not allowed in SidecarMode"),
        (_put("metadata", "name", value="a" * 48), "48 characters"),
        (_put("metadata", "name", value="Score_1"), "DNS-1035"),
        (_drop("spec", "shutdownAfterJobFinishes"), "outlives the job"),
        (
            _put(
                "spec",
                "deletionStrategy",
                value={
                    "deletionRules": [
                        {"policy": "DeleteWorkers", "condition": {"jobStatus": "FAILED"}}
                    ]
                },
            ),
            "DeleteWorkers is not allowed with autoscaling",
        ),
        (_put(*CLUSTER_SPEC, "rayVersion", value="2.51.0"), f"the image has {RAY}"),
        (_drop(*CLUSTER_SPEC, "rayVersion"), "authOptions: needs rayVersion"),
        (_drop(*CLUSTER_SPEC, "authOptions"), "must be token"),
        (_drop(*CLUSTER_SPEC, "autoscalerOptions"), "write v2"),
        (_drop(*CLUSTER_SPEC, "headGroupSpec", "rayStartParams"), "num-cpus must be '0'"),
        (
            _put(
                *(*CLUSTER_SPEC, "headGroupSpec", "template", "spec", "nodeSelector"),
                value={"karpenter.sh/capacity-type": "spot"},
            ),
            "a lost head is a lost run",
        ),
        (_put(*WORKER, "minReplicas", value=11), "not between minReplicas 11 and maxReplicas 10"),
        (_put(*WORKER, "rayStartParams", value={"labels": "a=b"}), "write labels beside it"),
        (_put(*POD, "restartPolicy", value="Always"), "must be Never"),
        (_put(*CONTAINER, "resources", "requests", "cpu", value="500m"), "whole number of CPUs"),
        (_drop(*CONTAINER, "resources", "limits", "memory"), "must be written and equal"),
        (_put(*CONTAINER, "image", value="consomme"), "no fixed tag"),
        (_drop(*POD, "securityContext"), "not root"),
        (_put(*CONTAINER, "volumeMounts", 0, "name", value="dat"), "no volume 'dat'"),
    ],
)
def test_our_rules_refuse(change: Callable[[Manifest], None], problem: str) -> None:
    manifest = load("rayjob-score.yaml")
    change(manifest)
    assert crd_problems(manifest) == [], "the schema would have said it"
    assert any(problem in text for text in rule_problems(manifest, RAY))


def test_a_job_does_not_keep_its_gpus_waiting_for_the_first_one() -> None:
    """The pipelines look for GPUs when they start, so one must be there before."""
    gpus = [g for g in groups_of(load("rayjob-score.yaml")) if g.get("groupName") == "gpu-spot"]
    assert [group["minReplicas"] for group in gpus] == [1]


def test_the_entrypoint_is_a_command_that_loads() -> None:
    job = load("rayjob-score.yaml")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[0] == "consomme"
    verb = VERBS[words[1]]
    path = ROOT / Path(words[2]).relative_to("/opt/consomme")
    recipe = load_recipe(resolve(verb.recipe), path, words[3:])
    assert recipe.root.startswith("/data/")
    assert all(shard.startswith("/data/") for shard in recipe.inputs)
    mounts = [pod["containers"][0]["volumeMounts"] for pod in pods_of(job)]
    assert all({"name": "data", "mountPath": "/data"} in mount for mount in mounts)
    # The submitter passes the words through two shells.
    assert not set(job["spec"]["entrypoint"]) & set("'\"*?;&|$`<>(){}[]")


@pytest.mark.parametrize("name", MANIFESTS)
def test_what_it_names_is_in_storage(name: str) -> None:
    objects = list(yaml.safe_load_all((CLUSTER / "storage.yaml").read_text()))
    names = {(item["kind"], item["metadata"]["name"]) for item in objects}
    for pod in pods_of(load(name)):
        assert ("ServiceAccount", pod["serviceAccountName"]) in names
        claims = [
            v["persistentVolumeClaim"]["claimName"]
            for v in pod["volumes"]
            if len(v) > 1 and "persistentVolumeClaim" in v
        ]
        assert all(("PersistentVolumeClaim", claim) in names for claim in claims)
    assert "ReadWriteMany" in objects[0]["spec"]["accessModes"]


def test_spot_workers_say_goodbye_in_time() -> None:
    for group in groups_of(load("rayjob-score.yaml"))[1:]:
        pod = group["template"]["spec"]
        script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        deadline = int(re.findall(r"--deadline-remaining-seconds (\d+)", script)[0])
        sleep = int(re.findall(r"sleep (\d+)", script)[0])
        assert sleep < deadline < pod["terminationGracePeriodSeconds"]


@pytest.mark.ray
def test_ray_still_has_the_hidden_drain_command() -> None:
    from ray.scripts.scripts import drain_node

    known = {option for parameter in drain_node.params for option in parameter.opts}
    pod = pods_of(load("rayjob-score.yaml"))[1]
    script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert "ray drain-node" in script
    assert set(re.findall(r"--[a-z-]+", script)) <= known
    reasons = next(p for p in drain_node.params if "--reason" in p.opts).type.choices
    assert "DRAIN_NODE_REASON_PREEMPTION" in [str(getattr(r, "name", r)) for r in reasons]


def test_the_image_fits_the_manifests() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    text = " ".join(rest for _, rest in steps)
    assert [rest for step, rest in steps if step == "FROM"] == ["python:3.11-slim"]
    assert "-c constraints.txt '.[gpu]'" in text
    assert not re.search(r"https?://|index-url|find-links|trusted-host", text), "names an index"
    assert f"torch==={metadata.version('torch').split('+')[0]}" in text
    assert f"ray[data,default,train,tune]=={RAY}" in (ROOT / "pyproject.toml").read_text()
    user = [rest for step, rest in steps if step == "USER"][-1]
    for pod in [pod for name in MANIFESTS for pod in pods_of(load(name))]:
        security = pod["securityContext"]
        assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
    sent = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    for sources in [rest.split()[:-1] for step, rest in steps if step == "COPY"]:
        for source in sources:
            assert (ROOT / source).exists()
            assert f"!{source}" in sent


def test_the_runtime_env_sends_the_code_and_little_else() -> None:
    environment = yaml.safe_load((CLUSTER / "runtime-env.yaml").read_text())
    assert (ROOT / environment["env_vars"]["PYTHONPATH"] / "consomme").is_dir()
    assert {"/.venv", "/.git", "/runs"} <= set(environment["excludes"])
    # Ray refuses a job whose variables meet those a pipeline sets for its workers.
    from consomme.execution.session import WORKER_ENV

    assert not set(environment["env_vars"]) & set(WORKER_ENV)
