"""docker/compose.yaml: valid by the specification's schema, hardened in every service, and of one mind with the files
that it mounts. No container engine is needed; what needs one is listed in docs/deployment.md as not run.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from jsonschema.validators import validator_for  # type: ignore[import-untyped]

from router.cli.init import MADE, derived
from router.config import ConfigErrors, Limits, load_config
from router.routing import compile_snapshot
from tests.deploy import dockerfile
from tools.check_docs import ROOT

FILE: Final = ROOT / "docker/compose.yaml"
PROFILES: Final = {"minimal", "gpu", "observe", "webui"}
ONCE: Final = {"init", "grafana-key", "webui-key"}
"""Services that do something and end."""


def load() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return found


COMPOSE: Final = load()
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]


def default(text: str) -> str:
    """With ${NAME:-default} as it is when nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def secret_files() -> set[str]:
    values = dict.fromkeys(MADE, "x")
    return {*MADE, *derived(values, ""), "webui/openai_api_key", "grafana/router_key"}


def mounts(service: str) -> dict[str, tuple[str, bool]]:
    """Source and whether it is read-only, by the place inside."""
    found = {}
    for text in SERVICES[service].get("volumes", []):
        source, target, *mode = default(text).split(":")
        found[target] = (source, mode == ["ro"])
    return found


def test_it_is_valid_by_the_schema_of_the_specification() -> None:
    text = (files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text()
    schema = json.loads(text)
    errors = [error.message for error in validator_for(schema)(schema).iter_errors(COMPOSE)]
    assert errors == []


def test_docker_compose_reads_it() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    for profile in PROFILES:
        command = [docker, "compose", "-f", str(FILE), "--profile", profile, "config", "--quiet"]
        subprocess.run(command, check=True, timeout=60)


def test_profiles_bring_what_they_say() -> None:
    def of(profile: str) -> set[str]:
        return {name for name, service in SERVICES.items() if profile in service["profiles"]}

    core = {"init", "valkey", "router"}
    assert of("minimal") == core
    assert of("gpu") == core | {"ollama"}
    assert of("observe") == core | {"prometheus", "alertmanager", "grafana", "grafana-key"}
    assert of("webui") == core | {"webui", "webui-key"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "pid", "ipc", "devices", "container_name"} & service.keys()
    assert "/tmp" in service["tmpfs"]
    for port in service.get("ports", []):
        assert default(port).startswith("127.0.0.1:"), port
    image = default(service["image"])
    assert re.fullmatch(r"[\w./-]+:[\w.-]+", image), image
    assert not image.endswith((":latest", ":main"))
    assert service.get("pull_policy") == ("never" if "build" in service else None)
    assert service["logging"]["options"]["max-size"]
    if name in ONCE:
        return
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert service["restart"] == "unless-stopped"
    assert service["deploy"]["resources"]["limits"]["pids"] > 0


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_what_it_needs(name: str) -> None:
    service = SERVICES[name]
    for other, wanted in service.get("depends_on", {}).items():
        needed = SERVICES[other]
        assert set(service["profiles"]) <= set(needed["profiles"]), f"{name} would start without {other}"
        if other in ONCE:
            assert wanted == {"condition": "service_completed_successfully"}
        else:
            assert wanted == {"condition": "service_healthy"}
            assert "healthcheck" in needed


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there(name: str) -> None:
    for target, (source, read_only) in mounts(name).items():
        if source.startswith("."):
            assert (FILE.parent / source).resolve().exists(), source
            assert read_only, f"{target}: the repository's files are only read"
        else:
            assert source in COMPOSE["volumes"]
        writers = {
            "init",
            *(["grafana-key"] if "grafana" in source else []),
            *(["webui-key"] if "webui" in source else []),
        }
        if source.startswith("secrets-"):
            assert read_only is (name not in writers)


def test_no_volume_is_declared_for_nothing() -> None:
    used = {source for name in SERVICES for source, _ in mounts(name).values()}
    assert set(COMPOSE["volumes"]) <= used


def test_there_is_no_password_in_it_and_each_service_sees_its_own_alone() -> None:
    made = secret_files()
    named = set()
    for name, service in SERVICES.items():
        volumes = {source for source, _ in mounts(name).values() if source.startswith("secrets-")}
        for variable, value in (service.get("environment") or {}).items():
            if re.search(r"PASSWORD|SECRET|TOKEN|KEY|PEPPER|REDIS_URL", variable) and variable != "OLLAMA_KEEP_ALIVE":
                assert re.fullmatch(r"(file:)?/secrets/[\w/]+", value), f"{name}: {variable}"
        text = json.dumps({key: value for key, value in service.items() if key not in ("volumes", "depends_on")})
        for part, file in re.findall(r"/secrets/(\w+)/(\w+)", text):
            assert f"{part}/{file}" in made, f"{name}: {part}/{file}"
            assert f"secrets-{part}" in volumes, f"{name} has no {part}/{file}"
            named.add(f"{part}/{file}")
    conf = (ROOT / "docker/valkey.conf").read_text()
    assert "aclfile /secrets/store/users.acl" in conf
    allowed = {"init": 5, "grafana-key": 2, "webui-key": 2}
    for name in SERVICES:
        assert sum(source.startswith("secrets-") for source, _ in mounts(name).values()) <= allowed.get(name, 1), name


def test_the_volumes_of_secrets_belong_to_who_writes_them() -> None:
    file = dockerfile.parse((ROOT / "docker/Dockerfile").read_text())
    runtime = file.stage("runtime")
    assert runtime is not None
    text = " ".join(step.text for step in runtime.steps if step.word == "RUN")
    parts = re.search(r"for part in ([a-z ]+); do install -d -o switchyard", text)
    assert parts is not None
    assert set(parts[1].split()) == {target.rpartition("/")[2] for target in mounts("init")}
    assert {name.partition("/")[0] for name in secret_files()} == set(parts[1].split())
    for name, service in SERVICES.items():
        if name not in ONCE | {"router"} and any(source.startswith("secrets-") for source, _ in mounts(name).values()):
            assert service["group_add"] == ["10001"], name


def test_the_router_has_time_to_drain() -> None:
    grace = int(SERVICES["router"]["stop_grace_period"].removesuffix("s"))
    assert grace >= Limits().drain_seconds + 15


def test_nobody_but_the_router_reaches_the_store_and_the_local_models() -> None:
    def on(network: str) -> set[str]:
        return {name for name, service in SERVICES.items() if network in service.get("networks", [])}

    assert on("models") == {"router", "ollama"}
    assert on("store") == {"router", "valkey", "grafana-key", "webui-key"}
    assert COMPOSE["networks"]["store"] == {"internal": True}
    assert on("apps") == {"router", "webui"}
    assert SERVICES["ollama"]["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    ]
    assert default(SERVICES["router"]["environment"]["OLLAMA_HOST"]) == "http://ollama:11434"


@pytest.mark.parametrize(("told", "off"), [(None, "enabled is false"), ("on", None)])
def test_no_alert_tells_of_an_ollama_that_nobody_has(told: str | None, off: str | None) -> None:
    """Without profile gpu nobody is called ollama."""
    env = {name: default(value) for name, value in SERVICES["router"]["environment"].items()}
    assert SERVICES["router"]["environment"]["SWITCHYARD_LOCAL"] == "${SWITCHYARD_LOCAL:-off}"
    given = {name: value for name, value in env.items() if not value.startswith("file:") and name != EMBEDDED}
    config = load_config(ROOT / "config/switchyard.yaml", {**given, **({"SWITCHYARD_LOCAL": told} if told else {})})
    assert compile_snapshot(config).providers["local"].off == off


EMBEDDED: Final = "SWITCHYARD_EMBEDDED"


@pytest.mark.parametrize("name", ["router", "webui-key", "grafana-key"])
def test_whoever_reads_the_config_reads_it_as_the_router_does(name: str, tmp_path: Path) -> None:
    service = SERVICES[name]
    for setting in ("env_file", "environment"):
        assert service[setting] == SERVICES["router"][setting]
    assert mounts(name)["/etc/switchyard"] == mounts("router")["/etc/switchyard"]
    # A config of one's own that names no store would give each of them one, and keys that the others do not know.
    token, redis = tmp_path / "token", tmp_path / "redis"
    token.write_text("a-token-for-the-metrics-of-tests\n")
    redis.write_text("redis://switchyard:x@valkey:6379/0\n")
    env = {EMBEDDED: service["environment"][EMBEDDED], "SWITCHYARD_METRICS_TOKEN": f"file:{token}"}
    file = tmp_path / "switchyard.yaml"
    for text in ("providers: {}\n", "redis: {url: embedded}\n", 'redis: {url: "${SWITCHYARD_REDIS_URL:-embedded}"}\n'):
        file.write_text(text)
        assert load_config(file, {}).redis.url.get_secret_value() == "embedded"
        with pytest.raises(ConfigErrors, match=EMBEDDED) as refused:
            load_config(file, env)
        assert "${SWITCHYARD_REDIS_URL}" in str(refused.value)
    found = load_config(file, {**env, "SWITCHYARD_REDIS_URL": f"file:{redis}"})
    assert found.redis.url.get_secret_value() == "redis://switchyard:x@valkey:6379/0"
    assert found.server.metrics.token is not None, "Prometheus shows this one whatever the config says"
    assert found.server.metrics.token.get_secret_value() == "a-token-for-the-metrics-of-tests"


def test_the_router_listens_where_the_others_look() -> None:
    """Whatever port the config names."""
    image = dockerfile.parse((ROOT / "docker/Dockerfile").read_text()).stage("runtime")
    assert image is not None
    (told,) = (step.text for step in image.steps if step.word == "CMD")
    for command in (SERVICES["router"]["command"], json.loads(told)):
        options = dict(zip(command[2::2], command[3::2], strict=True))
        assert (options["--host"], options["--port"]) == ("0.0.0.0", "8080")


def test_the_backup_takes_what_cannot_be_made_again() -> None:
    found = re.search(r"\$\(for v in ([\w -]+); do", (ROOT / "docs/deployment.md").read_text())
    assert found is not None
    secret = {name for name in COMPOSE["volumes"] if name.startswith("secrets-")}
    assert set(found[1].split()) == {"store", "data", *secret}


def test_open_webui_takes_a_new_key_at_each_start() -> None:
    assert SERVICES["webui"]["environment"]["ENABLE_PERSISTENT_CONFIG"] == "false"


def test_the_sample_of_settings_names_profiles_and_variables_that_there_are() -> None:
    lines = (ROOT / "docker/.env.example").read_text().splitlines()
    assert "COMPOSE_PROFILES=minimal" in lines, "without it `up`, `down` and the like reach no service at all"
    settings = [line for line in lines if "=" in line and not line.startswith("#")]
    assert settings == ["COMPOSE_PROFILES=minimal"]
    text = FILE.read_text() + (ROOT / "config/switchyard.yaml").read_text()
    for name in re.findall(r"^# ([A-Z][A-Z_]+)=", "\n".join(lines), re.MULTILINE):
        assert re.search(rf"\b{name}\b", text), name


def test_prometheus_and_grafana_find_the_router_and_their_files() -> None:
    found = yaml.safe_load((ROOT / "config/prometheus/prometheus.yml").read_text())
    assert mounts("prometheus")["/etc/prometheus"][0] == "../config/prometheus"
    for name in found["rule_files"]:
        assert (ROOT / "config/prometheus" / name).is_file()
    (job,) = found["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["router:8080"]}]
    directory, _, token = job["authorization"]["credentials_file"].rpartition("/")
    assert mounts("prometheus")[directory][0] == "secrets-metrics"
    assert f"metrics/{token}" in secret_files()
    alertmanagers = found["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert alertmanagers == ["alertmanager:9093"]

    sources = yaml.safe_load((ROOT / "config/grafana/provisioning/datasources/switchyard.yaml").read_text())
    assert {source["url"] for source in sources["datasources"]} == {"http://prometheus:9090", "http://router:8080"}
    kinds = {source["type"] for source in sources["datasources"]} - {"prometheus"}
    assert kinds == {SERVICES["grafana"]["environment"]["GF_PLUGINS_PREINSTALL"]}
    text = json.dumps(sources)
    variables = set(re.findall(r"\$(\w+)", text))
    assert all(f"export {variable}" in SERVICES["grafana"]["entrypoint"][2] for variable in variables)
    boards = yaml.safe_load((ROOT / "config/grafana/provisioning/dashboards/switchyard.yaml").read_text())
    (path,) = {provider["options"]["path"] for provider in boards["providers"]}
    assert mounts("grafana")[path][0] == "../config/grafana/dashboards"
    assert list((ROOT / "config/grafana/dashboards").glob("*.json"))
