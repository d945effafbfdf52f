"""What kustomize makes of a directory, for the fields that ours use; another field is an error. Where a real kustomize
is at hand (kubectl has one), a test compares the two.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any, Final

import yaml

FIELDS: Final = frozenset(
    {
        *("apiVersion", "kind", "namespace", "resources", "components"),
        *("configMapGenerator", "images", "patches"),
    }
)
CLUSTER_WIDE: Final = frozenset({"Namespace"})
Object = dict[str, Any]


def build(directory: Path) -> list[Object]:
    """Raises ValueError for a field that is not understood, KeyError and OSError for what is missing."""
    return _apply(directory, [])


def _apply(directory: Path, found: list[Object]) -> list[Object]:
    wanted = yaml.safe_load((directory / "kustomization.yaml").read_text())
    if unknown := wanted.keys() - FIELDS:
        raise ValueError(f"{directory}: {sorted(unknown)}")
    for name in wanted.get("resources", []):
        path = directory / name
        if path.is_dir():
            found = [*found, *build(path.resolve())]
        else:
            found = [*found, *(one for one in yaml.safe_load_all(path.read_text()) if one is not None)]
    for generator in wanted.get("configMapGenerator", []):
        found = [*found, _config_map(directory, generator)]
    for name in wanted.get("components", []):
        found = _apply((directory / name).resolve(), found)
    found = copy.deepcopy(found)
    if namespace := wanted.get("namespace"):
        for one in found:
            if one["kind"] not in CLUSTER_WIDE:
                one["metadata"]["namespace"] = namespace
    for patch in wanted.get("patches", []):
        targets = [one for one in found if _is_target(one, patch["target"])]
        if not targets:
            raise ValueError(f"{directory}: nothing is {patch['target']}")
        for one in targets:
            for operation in yaml.safe_load(patch["patch"]):
                _patch(one, operation)
    _name(found, wanted.get("images", []))
    return found


def _config_map(directory: Path, generator: Object) -> Object:
    data = {Path(name).name: (directory / name).read_text() for name in generator["files"]}
    digest = hashlib.sha256(repr(sorted(data.items())).encode()).hexdigest()[:10]
    name = generator["name"]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{name}-{digest}"}, "data": data}


def _is_target(one: Object, target: Object) -> bool:
    return bool(one["kind"] == target["kind"] and one["metadata"]["name"] == target["name"])


def _patch(one: Object, operation: Object) -> None:
    *way, last = operation["path"].strip("/").split("/")
    place: Any = one
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if operation["op"] == "add" and last == "-":
        place.append(operation["value"])
    elif operation["op"] == "replace" and last in place:
        place[last] = operation["value"]
    else:
        raise ValueError(f"{operation}")


def _name(found: list[Object], images: list[Object]) -> None:
    """Names of generated config maps and of images, in the pods that use them."""
    generated = {
        one["metadata"]["name"].rpartition("-")[0]: one["metadata"]["name"]
        for one in found
        if one["kind"] == "ConfigMap"
    }
    for one in found:
        if one["kind"] != "Deployment":
            continue
        pod = one["spec"]["template"]["spec"]
        for volume in pod["volumes"]:
            if "configMap" in volume:
                volume["configMap"]["name"] = generated.get(volume["configMap"]["name"], volume["configMap"]["name"])
        for container in pod["containers"]:
            for image in images:
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
