"""A small validator for manifests against the OpenAPI schemas of KubeRay's CRDs.

It follows the API server: defaults are filled before anything is checked (KubeRay requires fields
that it also defaults), and unknown fields are refused, as `kubectl --validate=strict` does.
"""

import copy
import gzip
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

CRDS = Path(__file__).parent / "crds"
Schema = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


@cache
def schema_of(kind: str) -> Schema:
    """Return the v1 schema of RayCluster, RayJob or RayService, completed at the top.

    A CRD says nothing about what the API server itself requires of every object.
    """
    path = CRDS / f"{kind.lower()}s-v1.json.gz"
    schema: Schema = json.loads(gzip.decompress(path.read_bytes()))
    schema["properties"]["metadata"] = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string"},
            "namespace": {"type": "string"},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    }
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def crd_problems(manifest: dict[str, Any]) -> list[str]:
    """List what the API server would refuse; empty for a good manifest."""
    if manifest.get("apiVersion") != "ray.io/v1":
        return [f"apiVersion: found {manifest.get('apiVersion')!r}, expected 'ray.io/v1'"]
    if manifest.get("kind") not in ("RayCluster", "RayJob", "RayService"):
        return [f"kind: found {manifest.get('kind')!r}, expected RayCluster, RayJob or RayService"]
    schema = schema_of(manifest["kind"])
    return problems(schema, with_defaults(schema, copy.deepcopy(manifest)), "")


def with_defaults(schema: Schema, value: Any) -> Any:
    """Fill in the schema's defaults, at any depth, in place."""
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if "default" in part and value.get(name) is None:
                value[name] = copy.deepcopy(part["default"])
            if name in value:
                with_defaults(part, value[name])
    elif isinstance(value, list) and "items" in schema:
        for item in value:
            with_defaults(schema["items"], item)
    return value


def problems(schema: Schema, value: Any, path: str) -> list[str]:
    """List what is wrong with a value, each with its path."""
    if value is None and schema.get("nullable"):
        return []
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            return [f"{path}: found {value!r}, expected a whole number or a string"]
        return _text(schema, str(value), path)
    kind = schema.get("type")
    if kind:
        is_bool = isinstance(value, bool)
        if not isinstance(value, _TYPES[kind]) or (is_bool and kind != "boolean"):
            return [f"{path}: found {value!r}, expected {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{path}: found {value!r}, expected one of {', '.join(map(str, schema['enum']))}"]
    if isinstance(value, dict):
        return _object(schema, value, path)
    if isinstance(value, list):
        return _array(schema, value, path)
    if isinstance(value, str):
        return _text(schema, value, path)
    return _number(schema, value, path)


def _object(schema: Schema, value: dict[str, Any], path: str) -> list[str]:
    known = schema.get("properties", {})
    other = schema.get("additionalProperties")
    is_open = not known or schema.get("x-kubernetes-preserve-unknown-fields")
    found = [
        f"{_join(path, name)}: missing" for name in schema.get("required", []) if name not in value
    ]
    for name, item in value.items():
        where = _join(path, name)
        if name in known:
            found += problems(known[name], item, where)
        elif isinstance(other, dict):
            found += problems(other, item, where)
        elif not is_open:
            found.append(f"{where}: unknown field")
    return found


def _array(schema: Schema, value: list[Any], path: str) -> list[str]:
    found = []
    if len(value) < schema.get("minItems", 0):
        found.append(f"{path}: found {len(value)} items, expected {schema['minItems']} or more")
    for index, item in enumerate(value):
        found += problems(schema.get("items", {}), item, f"{path}[{index}]")
    keys = schema.get("x-kubernetes-list-map-keys")
    if keys and not found:
        names = [tuple(item.get(key) for key in keys) for item in value]
        found += [f"{path}: {keys} {name} twice" for name in set(names) if names.count(name) > 1]
    return found


def _text(schema: Schema, value: str, path: str) -> list[str]:
    found = []
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{path}: found {value!r}, expected to match {schema['pattern']}")
    low, high = schema.get("minLength", 0), schema.get("maxLength", len(value))
    if not low <= len(value) <= high:
        found.append(f"{path}: found {len(value)} characters, expected {low} to {high}")
    return found


def _number(schema: Schema, value: Any, path: str) -> list[str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value < schema.get("minimum", value):
            return [f"{path}: found {value}, expected {schema['minimum']} or more"]
        if schema.get("format") == "int32" and abs(value) >= 2**31:
            return [f"{path}: found {value}, expected a 32-bit number"]
    return []


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else str(name)
