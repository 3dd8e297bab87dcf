"""What KubeRay's operator refuses, or users regret, and no CRD schema can say.

The facts are those of the operator's own validation at v1.7.0 and of its users' reports; each rule
returns sentences with the path of what is wrong.
"""

import re
from collections.abc import Iterator
from typing import Any

SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
NAME_LENGTHS = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
GIB = 2**30

Manifest = dict[str, Any]


def rule_problems(manifest: Manifest, ray_version: str) -> list[str]:
    """List what breaks a rule; empty for a good manifest.

    Args:
        manifest: One that its CRD accepts.
        ray_version: The Ray that the image holds.
    """
    kind, spec = manifest["kind"], manifest["spec"]
    found = _name_problems(kind, manifest["metadata"]["name"])
    where = "spec"
    if kind == "RayJob":
        found += _job_problems(spec)
        where, spec = "spec.rayClusterSpec", spec.get("rayClusterSpec", {})
    return found + _cluster_problems(spec, where, ray_version)


def _name_problems(kind: str, name: str) -> list[str]:
    found = []
    if len(name) > NAME_LENGTHS[kind]:
        found.append(f"metadata.name: {len(name)} characters, a {kind} has {NAME_LENGTHS[kind]}")
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        found.append(f"metadata.name: {name!r} is no DNS-1035 label")
    return found


def _job_problems(spec: Manifest) -> list[str]:
    found = []
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in SUBMISSION_MODES:
        # The schema has no enum here: a typing error reaches the operator.
        found.append(f"spec.submissionMode: {mode!r} is none of {', '.join(SUBMISSION_MODES)}")
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0):
        found.append("spec.backoffLimit: must be 0 in InteractiveMode")
    if mode == "SidecarMode":
        found += [
            f"spec.{key}: not allowed in SidecarMode"
            for key in ("submitterPodTemplate", "submitterConfig", "clusterSelector")
            if key in spec
        ]
    if "deletionStrategy" in spec:
        # No rule matches a stopped job, so its cluster would stay; and rules forbid suspension.
        found.append("spec.deletionStrategy: use shutdownAfterJobFinishes")
        if spec.get("shutdownAfterJobFinishes"):
            found.append("spec.shutdownAfterJobFinishes: not allowed beside deletionStrategy")
        rules = spec["deletionStrategy"].get("deletionRules", [])
        scales = spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling")
        if scales and any(rule.get("policy") == "DeleteWorkers" for rule in rules):
            found.append("spec.deletionStrategy: DeleteWorkers is not allowed with autoscaling")
    elif not spec.get("shutdownAfterJobFinishes"):
        found.append("spec.shutdownAfterJobFinishes: not set, so the cluster outlives the job")
    if not spec.get("entrypoint") and mode != "InteractiveMode":
        found.append("spec.entrypoint: missing")
    return found


def _cluster_problems(spec: Manifest, where: str, ray_version: str) -> list[str]:
    found = []
    if spec.get("rayVersion") != ray_version:
        found.append(f"{where}.rayVersion: {spec.get('rayVersion')!r}, the image has {ray_version}")
    auth = spec.get("authOptions", {})
    if auth.get("mode") != "token":
        found.append(f"{where}.authOptions.mode: must be token; who reaches Ray may run code")
    if auth and not spec.get("rayVersion"):
        found.append(f"{where}.authOptions: needs rayVersion")
    for key in ("managedBy", "gcsFaultToleranceOptions"):
        if key in spec:
            found.append(f"{where}.{key}: not used here, and its CEL rules are not checked")
    scales = spec.get("enableInTreeAutoscaling")
    if scales and spec.get("autoscalerOptions", {}).get("version") != "v2":
        # The operator's own checks for v2 read this field only.
        found.append(f"{where}.autoscalerOptions.version: write v2")
    head = spec["headGroupSpec"]
    if scales and head.get("rayStartParams", {}).get("num-cpus") != "0":
        found.append(f"{where}.headGroupSpec.rayStartParams: num-cpus must be '0': no work there")
    if _is_spot(head):
        found.append(f"{where}.headGroupSpec: on spot; a lost head is a lost run")
    if _memory(head) < 8 * GIB:
        found.append(f"{where}.headGroupSpec: less than 8Gi of memory; the head will be killed")
    names = []
    for path, group in _groups(spec, where):
        found += _pod_problems(path, group, bool(scales))
        names.append(group.get("groupName"))
    found += [f"{where}: group {name!r} twice" for name in set(names) if names.count(name) > 1]
    return found


def _groups(spec: Manifest, where: str) -> Iterator[tuple[str, Manifest]]:
    yield f"{where}.headGroupSpec", spec["headGroupSpec"]
    for index, group in enumerate(spec.get("workerGroupSpecs", [])):
        yield f"{where}.workerGroupSpecs[{index}]", group


def _pod_problems(path: str, group: Manifest, scales: bool) -> list[str]:
    found = []
    low, high = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    if not low <= group.get("replicas", low) <= high:
        found.append(f"{path}: replicas are not between minReplicas {low} and maxReplicas {high}")
    if "resources" in group and set(group["resources"]) & set(group.get("rayStartParams", {})):
        found.append(f"{path}: resources both in resources and in rayStartParams")
    if "labels" in group.get("rayStartParams", {}):
        found.append(f"{path}.rayStartParams.labels: write labels beside it")
    pod = group["template"]["spec"]
    if scales and pod.get("restartPolicy", "Never") != "Never":
        found.append(f"{path}: restartPolicy must be Never under autoscaler v2")
    for container in pod["containers"]:
        found += _container_problems(f"{path} {container['name']}", pod, container)
    return found


def _container_problems(where: str, pod: Manifest, container: Manifest) -> list[str]:
    found = []
    requests = container.get("resources", {}).get("requests", {})
    limits = container.get("resources", {}).get("limits", {})
    if "memory" not in limits or requests.get("memory") != limits["memory"]:
        # /dev/shm and Ray's object store are sized by the limit.
        found.append(f"{where}: memory request and limit must be written and equal")
    if not str(requests.get("cpu", "")).isdigit():
        found.append(f"{where}: cpu request {requests.get('cpu')!r} is no whole number of CPUs")
    if requests.get("nvidia.com/gpu") != limits.get("nvidia.com/gpu"):
        found.append(f"{where}: GPUs requested and allowed differ")
    security = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
    if not security.get("runAsNonRoot") or security.get("runAsUser", 0) == 0:
        found.append(f"{where}: must run as a user that is not root")
    if security.get("allowPrivilegeEscalation") is not False:
        found.append(f"{where}: allowPrivilegeEscalation must be false")
    image = container["image"]
    if ":" not in image.rpartition("/")[2] or image.endswith(":latest"):
        found.append(f"{where}: image {image!r} has no fixed tag")
    mounted = [mount["name"] for mount in container.get("volumeMounts", [])]
    declared = [volume["name"] for volume in pod.get("volumes", [])]
    found += [f"{where}: no volume {name!r}" for name in mounted if name not in declared]
    if "/dev/shm" in [mount["mountPath"] for mount in container.get("volumeMounts", [])]:
        found.append(f"{where}: KubeRay mounts /dev/shm itself")
    return found


def _is_spot(group: Manifest) -> bool:
    pod = group["template"]["spec"]
    return "spot" in pod.get("nodeSelector", {}).values()


def _memory(group: Manifest) -> int:
    text = str(group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"])
    return int(text.removesuffix("Gi")) * GIB if text.endswith("Gi") else 0
