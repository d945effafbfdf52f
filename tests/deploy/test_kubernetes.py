"""The manifests: put together as kustomize does it, valid by the published schemas, and of one mind with the router."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml
from jsonschema.validators import validator_for  # type: ignore[import-untyped]

from router.config import ConfigErrors, load_config
from router.metrics import Metrics
from router.routing import compile_snapshot
from tests.deploy import dockerfile, kustomize
from tests.router.test_metric_text import scraped
from tools.check_docs import ROOT, Page

PLACE: Final = ROOT / "docker/kubernetes"
OVERLAYS: Final = ("external-redis", "sentinel", "cluster")
VERSIONS: Final = (pytest.param("1.31", marks=pytest.mark.slow), "1.37")
SECRETS: Final = {"redis-url", "admin-token", "pepper", "metrics-token"}
SERVICE_MONITOR: Final = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["selector", "endpoints"],
            "additionalProperties": False,
            "properties": {
                "jobLabel": {"type": "string"},
                "selector": {"type": "object", "required": ["matchLabels"]},
                "endpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string"},
                            "interval": {"type": "string", "pattern": r"^\d+s$"},
                            "authorization": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["credentials"],
                                "properties": {
                                    "type": {"const": "Bearer"},
                                    "credentials": {"type": "object", "required": ["name", "key"]},
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""What of the operator's ServiceMonitor is used here; the whole schema is in its own CRD."""


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """The objects by kind; there is one of each."""
    found = kustomize.build(PLACE / "overlays" / request.param)
    by_kind = {one["kind"]: one for one in found}
    assert len(by_kind) == len(found)
    return by_kind


def pod(overlay: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = overlay["Deployment"]["spec"]["template"]["spec"]
    return spec


def router(overlay: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (container,) = pod(overlay)["containers"]
    assert isinstance(container, dict)
    return container


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_valid_by_the_schemas_of_kubernetes(overlay: dict[str, dict[str, Any]], version: str) -> None:
    assert len(overlay) == 9
    for kind, one in overlay.items():
        if kind != "ServiceMonitor":
            kubernetes_validate.validate(one, version, strict=True)
    errors = [
        error.message
        for error in validator_for(SERVICE_MONITOR)(SERVICE_MONITOR).iter_errors(overlay["ServiceMonitor"])
    ]
    assert errors == []
    broken = {**overlay["Service"], "spec": {**overlay["Service"]["spec"], "portz": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_real_kustomize_makes_the_same(name: str) -> None:
    place = str(PLACE / "overlays" / name)
    known = (("kubectl", "kustomize"), ("kustomize", "build"))
    command = next(([path, verb, place] for name, verb in known if (path := shutil.which(name))), None)
    if command is None:
        pytest.skip("neither kubectl nor kustomize is installed")
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert _plain(list(yaml.safe_load_all(text))) == _plain(kustomize.build(PLACE / "overlays" / name))


def _plain(found: list[dict[str, Any]]) -> dict[str, str]:
    """By kind, without the checksum, whose recipe is kustomize's own."""
    text = {one["kind"]: yaml.safe_dump(one, sort_keys=True) for one in found}
    assert sum("switchyard-config-" in one for one in text.values()) == 2
    return {kind: re.sub(r"switchyard-config-\w{10}", "switchyard-config", one) for kind, one in text.items()}


def test_a_changed_config_replaces_the_pods(tmp_path: Path) -> None:
    def used(place: Path) -> str:
        (one,) = (one for one in kustomize.build(place / "overlays/cluster") if one["kind"] == "Deployment")
        (name,) = (v["configMap"]["name"] for v in one["spec"]["template"]["spec"]["volumes"] if "configMap" in v)
        return str(name)

    shutil.copytree(PLACE, tmp_path / "k")
    assert used(tmp_path / "k") == used(PLACE)
    with (tmp_path / "k/base/switchyard.yaml").open("a") as file:
        file.write("# changed\n")
    assert used(tmp_path / "k") != used(PLACE)


def test_pods_run_as_the_images_user_without_rights(overlay: dict[str, dict[str, Any]]) -> None:
    image = dockerfile.parse((ROOT / "docker/Dockerfile").read_text()).stage("runtime")
    assert image is not None
    (user,) = (step.text.partition(":")[0] for step in image.steps if step.word == "USER")
    assert pod(overlay)["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user),
        "runAsGroup": int(user),
        "fsGroup": int(user),
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert router(overlay)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "privileged": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(overlay)["automountServiceAccountToken"] is False
    assert overlay["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert not any("hostPath" in volume for volume in pod(overlay)["volumes"])
    assert "hostNetwork" not in pod(overlay)


def test_pods_have_time_to_drain(overlay: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    config = load_config(PLACE / "base/switchyard.yaml", environment(tmp_path))
    waits = router(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = pod(overlay)["terminationGracePeriodSeconds"]
    assert waits >= 5
    assert grace >= 90
    assert waits + config.server.limits.drain_seconds + 10 <= grace


def environment(place: Path) -> dict[str, str]:
    """What the Deployment's `env` means, with secrets that lie in `place`."""
    for name in SECRETS:
        (place / name).write_text("redis://switchyard:x@valkey:6379/0\n" if name == "redis-url" else "x" * 40)
    (deployment,) = (one for one in kustomize.build(PLACE / "base") if one["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    env = {one["name"]: one["value"] for one in container["env"]}
    assert {value.rpartition("/")[2] for value in env.values() if value.startswith("file:")} == SECRETS
    return {name: value.replace("/run/secrets/switchyard", str(place)) for name, value in env.items()}


def test_the_config_is_valid_and_listens_where_the_pod_says(overlay: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    config = load_config(PLACE / "base/switchyard.yaml", environment(tmp_path))
    assert compile_snapshot(config) is not None
    assert config.warnings == ()
    ports = {one["name"]: one["containerPort"] for one in router(overlay)["ports"]}
    assert config.server.metrics.listen is not None
    assert config.server.metrics.token is not None
    assert ports == {"http": config.server.listen[0].port, "metrics": config.server.metrics.listen.port}
    assert {one["targetPort"] for one in overlay["Service"]["spec"]["ports"]} == ports.keys()
    probes = {name: router(overlay)[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert [probes[name]["path"] for name in ("startup", "liveness", "readiness")] == [
        "/healthz",
        "/healthz",
        "/readyz",
    ]
    mounts = {one["mountPath"] for one in router(overlay)["volumeMounts"]}
    assert {"/etc/switchyard", "/run/secrets/switchyard", str(config.data_dir), "/tmp"} == mounts


def test_a_providers_key_has_the_names_that_the_default_config_knows() -> None:
    def keys(file: Path) -> dict[str, str]:
        rows = yaml.safe_load(file.read_text())["providers"]
        return {name: row["api_key"] for name, row in rows.items() if "api_key" in row}

    assert keys(PLACE / "base/switchyard.yaml") == keys(ROOT / "config/switchyard.yaml")


def test_secrets_are_named_and_nowhere_written(overlay: dict[str, dict[str, Any]]) -> None:
    assert "Secret" not in overlay
    (volume,) = (one["secret"] for one in pod(overlay)["volumes"] if "secret" in one)
    assert volume["secretName"] == "switchyard"
    endpoint = overlay["ServiceMonitor"]["spec"]["endpoints"][0]
    assert endpoint["authorization"]["credentials"] == {"name": "switchyard", "key": "metrics-token"}
    assert endpoint["port"] in {one["name"] for one in overlay["Service"]["spec"]["ports"]}
    command = (ROOT / "docs/deployment.md").read_text()
    assert all(f"--from-file={name}=" in command for name in SECRETS), "the page has the command that makes the Secret"


def test_the_page_makes_the_operators_rules_of_ours() -> None:
    (block,) = (one.text for one in Page(Path("docs/deployment.md")).blocks if "kind: PrometheusRule" in one.text)
    command = ["bash", "-c", f"kubectl() {{ cat; }}\n{block}"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    made = [one for one in yaml.safe_load_all(text) if one is not None]
    assert [one["metadata"]["name"] for one in made] == ["switchyard-recording", "switchyard-alerts"]
    files = yaml.safe_load((ROOT / "config/prometheus/prometheus.yml").read_text())["rule_files"]
    assert [one["spec"] for one in made] == [
        yaml.safe_load((ROOT / "config/prometheus" / name).read_text()) for name in files
    ]


def test_everything_selects_the_same_pods(overlay: dict[str, dict[str, Any]]) -> None:
    labels = overlay["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert overlay["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert overlay["Service"]["spec"]["selector"] == labels
    assert overlay["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert overlay["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert overlay["ServiceMonitor"]["spec"]["selector"]["matchLabels"] == overlay["Service"]["metadata"]["labels"]
    for one in pod(overlay)["topologySpreadConstraints"]:
        assert one["labelSelector"]["matchLabels"] == labels
    target = overlay["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", overlay["Deployment"]["metadata"]["name"])
    assert "replicas" not in overlay["Deployment"]["spec"], "the autoscaler would fight each `kubectl apply`"
    assert {one["metadata"]["namespace"] for kind, one in overlay.items() if kind != "Namespace"} == {"switchyard"}


def test_the_autoscaler_needs_no_adapter_unless_it_is_asked_for(overlay: dict[str, dict[str, Any]]) -> None:
    """One metric that cannot be read would keep the autoscaler from removing pods."""
    spec = overlay["HorizontalPodAutoscaler"]["spec"]
    assert [one["type"] for one in spec["metrics"]] == ["Resource"]
    assert "cpu" in router(overlay)["resources"]["requests"], "utilisation is a share of what is requested"
    assert spec["minReplicas"] >= 2


@pytest.mark.parametrize("name", OVERLAYS)
def test_with_calls_in_flight_the_autoscaler_reads_a_metric_that_the_router_has(name: str, tmp_path: Path) -> None:
    component = PLACE / "components/calls-in-flight"
    wanted = {"resources": [str(PLACE / "overlays" / name)], "components": [str(component)]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(wanted))
    (scaler,) = (one for one in kustomize.build(tmp_path) if one["kind"] == "HorizontalPodAutoscaler")
    kubernetes_validate.validate(scaler, "1.37", strict=True)
    metrics = {one["type"]: one for one in scaler["spec"]["metrics"]}
    assert metrics.keys() == {"Resource", "Pods"}
    metric = metrics["Pods"]["pods"]["metric"]["name"]
    adapter = yaml.safe_load((component / "prometheus-adapter.yaml").read_text())
    (rule,) = adapter["rules"]["custom"]
    assert rule["seriesQuery"].partition("{")[0] == metric
    assert f"# TYPE {metric} gauge" in scraped(Metrics("1"))
    line = "  # - ../../components/calls-in-flight"
    assert line in (PLACE / "overlays" / name / "kustomization.yaml").read_text()


@pytest.mark.parametrize(("told", "off"), [({}, "enabled is false"), ({"SWITCHYARD_LOCAL": "on"}, None)])
def test_no_alert_tells_of_an_ollama_that_nobody_has(told: dict[str, str], off: str | None, tmp_path: Path) -> None:
    config = load_config(PLACE / "base/switchyard.yaml", {**environment(tmp_path), **told})
    assert compile_snapshot(config).providers["local"].off == off


def test_pods_never_have_a_store_each(overlay: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    env = {one["name"]: one["value"] for one in router(overlay)["env"] if one["name"] == "SWITCHYARD_EMBEDDED"}
    file = tmp_path / "switchyard.yaml"
    file.write_text("providers: {}\n")
    assert load_config(file, {}).redis.url.get_secret_value() == "embedded"
    with pytest.raises(ConfigErrors, match="SWITCHYARD_EMBEDDED"):
        load_config(file, env)
    with pytest.raises(ConfigErrors, match="SWITCHYARD_EMBEDDED"):
        load_config(
            PLACE / "base/switchyard.yaml", {**environment(tmp_path), **env, "SWITCHYARD_REDIS_URL": "embedded"}
        )


@pytest.mark.parametrize(("name", "ports"), [("external-redis", set()), ("sentinel", {26379}), ("cluster", set())])
def test_the_network_policy_lets_out_to_the_store_and_metrics_to_monitoring_alone(name: str, ports: set[int]) -> None:
    (policy,) = (one for one in kustomize.build(PLACE / "overlays" / name) if one["kind"] == "NetworkPolicy")
    (base,) = (one for one in kustomize.build(PLACE / "base") if one["kind"] == "NetworkPolicy")

    def let_out(one: dict[str, Any]) -> set[int]:
        return {port["port"] for rule in one["spec"]["egress"] for port in rule["ports"]}

    assert let_out(base) == {53, 443, 6379, 11434}
    assert let_out(policy) == let_out(base) | ports
    (metrics,) = (rule for rule in policy["spec"]["ingress"] if {"protocol": "TCP", "port": 9464} in rule["ports"])
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert len(metrics["ports"]) == 1
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_what_kustomize_would_do_is_not_skipped_silently(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("kind: Kustomization\nreplicas: []\n")
    with pytest.raises(ValueError, match="replicas"):
        kustomize.build(tmp_path)
