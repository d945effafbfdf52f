"""The gateways that are compared, one row each: how to start one, when it is ready, which key it wants.

A peer runs from its own virtual environment under `.bench/` at the top of the checkout; `set_up` makes them. A row
whose program is missing says what to do and is left out.
"""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PEERS: Final = ROOT / ".bench"
FERROGW: Final = "1.5.10"
_LOCK: Final = ROOT / "requirements.lock"
_TOKEN: Final = "bench-admin-token-of-one-run"
_NGINX_PATHS: Final = (Path("/usr/sbin/nginx"), Path("/usr/local/sbin/nginx"))


@dataclass(frozen=True, slots=True)
class Site:
    """Where one gateway runs: its port, its upstream's, and a folder of its own."""

    port: int
    upstream: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Lane:
    """One way through a gateway: the client's dialect, the model it asks for, and what the upstream speaks."""

    name: str
    path: str = "/v1/chat/completions"
    model: str = "bench"


@dataclass(frozen=True, slots=True)
class Command:
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


def _no_key(site: Site) -> str:
    return "none"


@dataclass(frozen=True, slots=True)
class Gateway:
    name: str
    missing: Callable[[], str | None]  # why it cannot run here and what to do, or None
    release: Callable[[], str]
    start: Callable[[Site], Command]  # writes its config into the site's folder
    ready: str  # a path that answers 200 once it serves
    lanes: tuple[Lane, ...]
    key: Callable[[Site], str] = _no_key  # a key its clients send, made after it is ready
    checks_keys: bool = False  # a call without the key is refused; verified before measuring
    streams: bool = True
    patience: float = 60.0  # seconds it may take to become ready


def lock_pin(package: str) -> str | None:
    """The release of a package in the lock, else the installed one."""
    if _LOCK.exists():
        for line in _LOCK.read_text().splitlines():
            if line.startswith(f"{package}=="):
                return line.split("==")[1].split()[0]
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# --- nginx -------------------------------------------------------------------------------------------------------


def _nginx() -> str | None:
    return shutil.which("nginx") or next((str(path) for path in _NGINX_PATHS if path.exists()), None)


def _nginx_start(site: Site) -> Command:
    config = site.folder / "nginx.conf"
    temporary = "".join(
        f"  {kind}_temp_path {site.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        "daemon off;\nworker_processes 1;\n"
        f"pid {site.folder}/nginx.pid;\nerror_log stderr warn;\n"
        "events { worker_connections 1024; }\n"
        "http {\n"
        f"{temporary}"
        "  access_log off;\n  keepalive_requests 100000000;\n"
        f"  upstream up {{ server 127.0.0.1:{site.upstream}; keepalive 128; keepalive_requests 100000000; }}\n"
        "  server {\n"
        f"    listen 127.0.0.1:{site.port};\n"
        '    location / { proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; '
        "proxy_buffering off; }\n"
        "  }\n}\n"
    )
    return Command((_nginx() or "nginx", "-c", str(config), "-e", "stderr"))


def _nginx_release() -> str:
    shown = subprocess.run([_nginx() or "nginx", "-v"], capture_output=True, text=True, check=False).stderr
    return shown.strip().rpartition("/")[2]


# --- ferrogw -----------------------------------------------------------------------------------------------------


def _ferrogw_start(site: Site) -> Command:
    config = site.folder / "ferrogw.yaml"
    config.write_text("strategy: {mode: single}\ntargets:\n  - virtual_key: openai\n    models: [bench]\n")
    return Command(
        (str(PEERS / "ferrogw/bin/ferrogw"), "serve"),
        {
            "GATEWAY_CONFIG": str(config),
            "PORT": str(site.port),
            "MASTER_KEY": _TOKEN,
            "OPENAI_API_KEY": "x",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{site.upstream}/v1",
            "RATE_LIMIT_RPS": "1000000",  # by default it answers 429 above 100 calls a second
            "RATE_LIMIT_BURST": "1000000",
            "FERRO_MODEL_CATALOG_URL": "http://127.0.0.1:9/",  # the bundled catalogue, not one from the internet
        },
    )


def _ferrogw_key(site: Site) -> str:
    request = urllib.request.Request(
        f"http://127.0.0.1:{site.port}/admin/keys",
        data=b'{"name":"bench"}',
        headers={"Authorization": f"Bearer {_TOKEN}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["key"])


# --- litellm -----------------------------------------------------------------------------------------------------


def _litellm_start(site: Site) -> Command:
    config = site.folder / "litellm.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: bench\n"
        f"    litellm_params: {{model: openai/bench, api_base: 'http://127.0.0.1:{site.upstream}/v1', api_key: x}}\n"
        "litellm_settings: {telemetry: false}\n"
        f"general_settings: {{master_key: sk-{_TOKEN}}}\n"
    )
    return Command(
        (
            *(str(PEERS / "litellm/bin/litellm"), "--config", str(config), "--host", "127.0.0.1"),
            *("--port", str(site.port), "--num_workers", "1"),
        ),
        {
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "NO_DOCS": "True",
        },
    )


# --- Switchyard --------------------------------------------------------------------------------------------------


def _switchyard_env(site: Site) -> dict[str, str]:
    return {"SWITCHYARD_ADMIN_TOKEN": _TOKEN, "SWITCHYARD_CONFIG": str(site.folder / "switchyard.yaml")}


def _switchyard() -> str:
    return str(Path(sys.executable).with_name("switchyard"))


def _switchyard_start(site: Site, *, without: str = "", priced: bool = False, workers: int = 1) -> Command:
    """`without`: a part that is replaced by nothing (`tests/bench/unmetered.py`); `priced`: calls cost money."""
    config = site.folder / "switchyard.yaml"
    config.write_text(
        f"server: {{listen: [{{host: 127.0.0.1, port: {site.port}}}]}}\n"
        "redis: {url: embedded}\n"
        f"data_dir: {site.folder}/data\n"
        "providers:\n"
        f"  up: {{vendor: openai-compatible, base_url: 'http://127.0.0.1:{site.upstream}/v1', api_key: x}}\n"
        f"  ollama: {{vendor: ollama, base_url: 'http://127.0.0.1:{site.upstream}', local: true}}\n"
        "models:\n"
        "  bench: {targets: [up/bench]}\n"
        "  bench-ollama: {targets: [ollama/bench]}\n"
    )
    if priced:
        (site.folder / "prices.yaml").write_text(
            "prices: [{provider: up, currency: usd, source: https://example.com/, looked_at: '2026-01-01',"
            " models: {bench: {input: 1, cached: 0.1, output: 4}}}]\n"
        )
        with config.open("a") as more:
            more.write("prices: {file: prices.yaml}\n")
    program = (sys.executable, "-m", "tests.bench.unmetered", without) if without else (_switchyard(),)
    return Command(
        (*program, "serve", "--config", str(config), "--port", str(site.port), "--workers", str(workers)),
        _switchyard_env(site),
    )


def _switchyard_key(site: Site, limits: tuple[str, ...] = ()) -> str:
    made = subprocess.run(
        [_switchyard(), "keys", "create", "--json", "--name", "bench", *limits],
        env={**os.environ, **_switchyard_env(site)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if made.returncode:
        raise RuntimeError(f"switchyard keys create failed: {made.stderr.strip() or made.stdout.strip()}")
    return str(json.loads(made.stdout)["key"])


# --- the table ---------------------------------------------------------------------------------------------------


def _file(path: Path, advice: str) -> Callable[[], str | None]:
    return lambda: None if path.exists() else f"{path} is missing: {advice}"


_OPENAI: Final = Lane("")
_SET_UP: Final = "run `python -m tests.bench --set-up`"

GATEWAYS: Final = (
    Gateway(
        "nginx",
        missing=lambda: None if _nginx() else "no nginx here: apt-get install nginx-light",
        release=_nginx_release,
        start=_nginx_start,
        ready="/v1/models",
        lanes=(_OPENAI,),
    ),
    Gateway(
        "uvicorn",
        missing=lambda: None,
        release=lambda: version("uvicorn"),
        start=lambda site: Command(
            (
                *(sys.executable, "-m", "uvicorn", "tests.bench.echo:app", "--port", str(site.port)),
                *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"),
                *("--lifespan", "off"),
            )
        ),
        ready="/",
        lanes=(_OPENAI,),
        streams=False,
    ),
    Gateway(
        "ferrogw",
        missing=_file(PEERS / "ferrogw/bin/ferrogw", _SET_UP),
        release=lambda: FERROGW,
        start=_ferrogw_start,
        ready="/readyz",
        lanes=(_OPENAI,),
        key=_ferrogw_key,
        checks_keys=True,
    ),
    Gateway(
        "litellm",
        missing=_file(PEERS / "litellm/bin/litellm", _SET_UP),
        release=lambda: lock_pin("litellm") or "?",
        start=_litellm_start,
        ready="/health/liveliness",
        lanes=(_OPENAI,),
        key=lambda site: f"sk-{_TOKEN}",
        checks_keys=True,
        patience=120.0,
    ),
    Gateway(
        "switchyard",
        missing=_file(Path(_switchyard()), "run `make setup`"),
        release=lambda: version("switchyard-router"),
        start=_switchyard_start,
        ready="/readyz",
        lanes=(
            _OPENAI,
            Lane("Ollama client, OpenAI upstream", "/api/chat", "bench"),
            Lane("OpenAI client, Ollama upstream", "/v1/chat/completions", "bench-ollama"),
        ),
        key=_switchyard_key,
        checks_keys=True,
    ),
    Gateway(
        "switchyard of 2 workers",
        missing=_file(Path(_switchyard()), "run `make setup`"),
        release=lambda: version("switchyard-router"),
        start=lambda site: _switchyard_start(site, workers=2),
        ready="/readyz",
        lanes=(_OPENAI,),
        key=_switchyard_key,
        checks_keys=True,
    ),
)


_LIMITS: Final = (
    *("--rpm", "1000m", "--tpm", "1000m", "--concurrency", "1m"),
    *("--max-tokens", "1000m/month", "--budget-month", "1000000usd"),
)


def _variant(name: str, *, without: str = "", limits: tuple[str, ...] = ()) -> Gateway:
    return Gateway(
        name,
        missing=_file(Path(_switchyard()), "run `make setup`"),
        release=lambda: version("switchyard-router"),
        start=lambda site: _switchyard_start(site, without=without, priced=True),
        ready="/readyz",
        lanes=(_OPENAI,),
        key=lambda site: _switchyard_key(site, limits),
        checks_keys=True,
    )


METERED: Final = _variant("as it is")
LIMITED: Final = _variant("as it is, a key with 5 limits", limits=_LIMITS)
UNMETERED: Final = _variant("without the ledger", without="ledger")
UNBILLED: Final = _variant("without bounds and bills too", without="accounts")
"""The router with and without what counts, for `tests/bench/ledger.py`."""


def set_up() -> None:
    """Makes the peers' virtual environments where they are missing."""
    wanted = {
        "ferrogw": ("bin/ferrogw", [f"ferrogw=={FERROGW}"]),
        "litellm": ("bin/litellm", [f"litellm[proxy]=={lock_pin('litellm')}"]),
        "tools": ("bin/py-spy", ["py-spy"]),
    }
    for name, (program, packages) in wanted.items():
        home = PEERS / name
        if (home / program).exists():
            continue
        print(f"installing {' '.join(packages)} into {home.relative_to(ROOT)}", flush=True)
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([str(home / "bin/python"), "-m", "pip", "install", "--quiet", *packages], check=True)
