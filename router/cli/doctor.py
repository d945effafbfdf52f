"""`switchyard doctor`: look at this machine and say what will not work, why, and what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.client
import importlib.util
import json
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal
from urllib.parse import urlsplit

import typer

from router.cli.address import speaks_chinese
from router.cli.common import ConfigOption, JsonOption, config_path, print_json

if TYPE_CHECKING:
    from router.config import Config
    from router.provider import Provider

Level = Literal["ok", "warn", "fail"]

_NEEDED: Final = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "uvloop": "uvloop",
    "httptools": "httptools",
    "msgspec": "msgspec",
    "orjson": "orjson",
    "yaml": "pyyaml",
    "pydantic": "pydantic",
    "redis": "redis",
    "hiredis": "hiredis",
    "prometheus_client": "prometheus-client",
}
"""Modules without which the router does not start, and the packages that hold them."""
_FREE_LEAST: Final = 100_000_000
_FREE_GOOD: Final = 1_000_000_000
"""Bytes of disk: below the first the store may soon refuse writes."""
_FILES_GOOD: Final = 4096
"""Open files: each running call takes two."""
_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    subject: str
    text: str
    fix: str | None = None


@dataclass(slots=True)
class Doctor:
    """What the checks share. `config` and `providers` are there once the config has been read."""

    path: Path
    connect: bool
    env: Mapping[str, str]
    chinese: bool = False
    config: Config | None = None
    providers: list[Provider] = field(default_factory=list)

    def words(self, english: str, chinese: str) -> str:
        return chinese if self.chinese else english

    @property
    def data_dir(self) -> Path | None:
        return Path(self.config.data_dir) if self.config else None


def doctor(
    config: ConfigOption = None,
    connect: Annotated[bool, typer.Option("--connect", help="Reach every provider that is on.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at this machine, the config, the store, the ports and the providers: what will not work, and what to do.

    Ends with 1 when something fails; warnings do not count.
    """
    patient = Doctor(config_path(config), connect, os.environ, speaks_chinese())
    findings = list(examine(patient))
    if as_json:
        rows = [{"level": f.level, "subject": f.subject, "text": f.text, "fix": f.fix} for f in findings]
        print_json({"ok": not any(f.level == "fail" for f in findings), "findings": rows})
    else:
        _print(patient, findings)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


def examine(patient: Doctor) -> Iterable[Finding]:
    for check in CHECKS:
        try:
            yield from check(patient)
        except Exception as error:  # noqa: BLE001 - a check that breaks is a finding; the others are still wanted
            yield Finding("warn", check.__name__.strip("_"), f"{type(error).__name__}: {error}")


def _print(patient: Doctor, findings: list[Finding]) -> None:
    colors = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        mark = typer.style(f"{finding.level:4}", fg=colors[finding.level])
        typer.echo(f"{mark}  {finding.subject:{width}}  {finding.text}")
        if finding.fix:
            typer.echo(f"{'':6}{'':{width}}  -> {finding.fix}")
    bad = sum(finding.level == "fail" for finding in findings)
    odd = sum(finding.level == "warn" for finding in findings)
    if not bad and not odd:
        typer.echo(patient.words("all is well", "一切正常"))
    else:
        typer.echo(patient.words(f"{bad} failed, {odd} to look at", f"{bad} 项失败，{odd} 项需要注意"))


# --- the machine ---------------------------------------------------------------------------------------------------


def _python(patient: Doctor) -> Iterable[Finding]:
    text = f"{platform.python_version()} ({sys.executable}), {platform.system()} {platform.machine()}"
    yield Finding("ok", "python", text)  # an older one does not get this far


def _packages(patient: Doctor) -> Iterable[Finding]:
    absent = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if absent:
        fix = (
            patient.words("in the clone: make setup; else see ", "在代码目录运行 make setup；其他安装方式见 ")
            + "docs/deployment.md"
        )
        text = patient.words("missing: ", "缺少：") + ", ".join(absent)
        yield Finding("fail", "packages", text, fix)
    else:
        from router.cli.version import router_version

        yield Finding("ok", "packages", f"switchyard {router_version()}")


def _clock(patient: Doctor) -> Iterable[Finding]:
    now, code = time.time(), Path(__file__).stat().st_mtime
    shown = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    if now + 86400 < code:  # a day, for time zones that were mixed up when it was unpacked
        fix = patient.words("set the clock (timedatectl set-ntp true)", "请校准系统时间（timedatectl set-ntp true）")
        text = patient.words(f"{shown} is before this program was installed", f"{shown} 早于本程序的安装时间")
        yield Finding("fail", "clock", text, fix)
    else:
        yield Finding("ok", "clock", shown)


def _open_files(patient: Doctor) -> Iterable[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FILES_GOOD:
        text = patient.words(f"the limit is {soft}; each running call takes two", f"上限为 {soft}，每个请求占用两个")
        yield Finding("warn", "open files", text, f"ulimit -n {_FILES_GOOD * 4}")
    else:
        yield Finding("ok", "open files", patient.words(f"the limit is {soft}", f"上限为 {soft}"))


# --- config and data ------------------------------------------------------------------------------------------------


def _config(patient: Doctor) -> Iterable[Finding]:
    from router.config import ConfigErrors, load_config
    from router.prices import load_prices
    from router.snapshot import compile_snapshot

    try:
        patient.config = load_config(patient.path, patient.env)
        patient.providers = list(compile_snapshot(patient.config).providers.values())
        load_prices(patient.config)
    except ConfigErrors as errors:
        for problem in errors.problems:
            yield Finding("fail", "config", str(problem))
        return
    yield Finding("ok", "config", str(patient.path))
    for warning in patient.config.warnings:
        yield Finding("warn", "config", str(warning))


def _data(patient: Doctor) -> Iterable[Finding]:
    folder = patient.data_dir
    if folder is None:
        return
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
    except OSError as error:
        text = patient.words(f"{existing} cannot be written", f"{existing} 不可写") + f": {error.strerror}"
        fix = patient.words("choose another data_dir, or mend its owner", "请更换 data_dir，或修正其所有者")
        yield Finding("fail", "data_dir", text, fix)
        return
    free = shutil.disk_usage(existing).free
    text = f"{folder.absolute()}, " + patient.words(f"{free / 1e9:.1f} GB free", f"剩余 {free / 1e9:.1f} GB")
    level: Level = "fail" if free < _FREE_LEAST else "warn" if free < _FREE_GOOD else "ok"
    fix = patient.words("make room, or choose another data_dir", "请清理磁盘，或更换 data_dir")
    yield Finding(level, "data_dir", text, None if level == "ok" else fix)


def _store(patient: Doctor) -> Iterable[Finding]:
    if patient.config is None or patient.data_dir is None:
        return
    from router.store import StoreError

    url = patient.config.redis.url.get_secret_value()
    try:
        if url == "embedded" and not patient.data_dir.exists():  # a look leaves nothing behind
            with tempfile.TemporaryDirectory() as scratch:
                yield from asyncio.run(_ask_store(patient, url, Path(scratch)))
        else:
            yield from asyncio.run(_ask_store(patient, url, patient.data_dir))
    except StoreError as error:
        yield Finding("fail", "store", str(error))


async def _ask_store(patient: Doctor, url: str, folder: Path) -> list[Finding]:
    from router.store import open_store

    store = await open_store(url, folder, role="command", environ=patient.env)
    try:
        problem = await store.ready()
        if problem:
            fix = patient.words("look at redis.url and at that server", "请检查 redis.url 和该服务器")
            return [Finding("fail", "store", problem, fix)]
        own = store.server_pid is not None
        how = patient.words("starts and answers", "可以启动并响应") if own else patient.words("answers", "有响应")
        findings = [Finding("ok", "store", f"{store.name}, {store.version}, {how}")]
        return findings + [Finding("warn", "store", warning) for warning in store.warnings]
    finally:
        await store.close()


def _ports(patient: Doctor) -> Iterable[Finding]:
    if patient.config is None:
        return
    for listen in patient.config.server.listen:
        place = f"{listen.host}:{listen.port}"
        try:
            info = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            with socket.socket(info[0], socket.SOCK_STREAM) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(info[4])
                trial.listen(1)
        except OSError as error:
            version = _our_version(listen.host, listen.port)
            if version is not None:
                text = patient.words(
                    f"{place} is served by switchyard {version}", f"{place} 由 switchyard {version} 提供服务"
                )
                yield Finding("ok", "port", text)
            else:
                text = f"{place}: {(error.strerror or str(error)).lower()}"
                fix = patient.words(
                    f"see who has it (ss -ltnp 'sport = :{listen.port}'), or choose another port",
                    f"查看占用者（ss -ltnp 'sport = :{listen.port}'），或更换端口",
                )
                yield Finding("fail", "port", text, fix)
        else:
            yield Finding("ok", "port", patient.words(f"{place} is free", f"{place} 可用"))


def _our_version(host: str, port: int) -> str | None:
    """The version of the router that listens there, if it is one."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    answer = _get_json(f"http://{f'[{reached}]' if ':' in reached else reached}:{port}", "/healthz")
    if answer and answer.get("status") == "ok" and "version" in answer:
        return str(answer["version"])
    return None


# --- providers ------------------------------------------------------------------------------------------------------


def _providers(patient: Doctor) -> Iterable[Finding]:
    if patient.config is None:
        return
    for provider in patient.providers:
        if provider.off:
            yield Finding("ok", f"provider {provider.name}", patient.words("off: ", "未启用：") + provider.off)
        elif provider.vendor.name not in ("ollama", "demo"):
            yield Finding(
                "ok", f"provider {provider.name}", patient.words("on, ", "已启用，") + (provider.base_url or "")
            )
    if all(provider.off for provider in patient.providers):
        fix = patient.words("set a key, or start an Ollama", "请设置密钥，或启动 Ollama")
        text = patient.words("none is on: no call can be answered", "没有启用任何提供方，无法响应请求")
        yield Finding("fail", "providers", text, fix)


def _ollama(patient: Doctor) -> Iterable[Finding]:
    for provider in patient.providers:
        if provider.vendor.name != "ollama" or provider.off:
            continue
        answer = _get_json(provider.base_url, "/api/version")
        if answer and "version" in answer:
            yield Finding("ok", f"provider {provider.name}", f"Ollama {answer['version']}, {provider.base_url}")
        else:
            text = patient.words(f"no Ollama at {provider.base_url}", f"{provider.base_url} 没有 Ollama")
            fix = patient.words(
                "start it (ollama serve) or set OLLAMA_HOST; else the demo model, where it is on, answers in its place",
                "启动 ollama serve 或设置 OLLAMA_HOST；否则由演示模型（如已启用）代替回答",
            )
            yield Finding("warn", f"provider {provider.name}", text, fix)


def _demo(patient: Doctor) -> Iterable[Finding]:
    from router import local_weights

    rows = [provider for provider in patient.providers if provider.vendor.name == "demo"]
    if not rows or patient.data_dir is None:
        return
    subject = f"provider {rows[0].name}"
    reason = local_weights.missing()
    if reason:
        yield Finding("warn", subject, reason, local_weights.FIX)
        return
    folder = patient.data_dir / "demo"
    damage = local_weights.verify(folder)
    if damage:
        yield Finding("fail", subject, damage, f"rm {folder / local_weights.FILE}")
        return
    text = patient.words("demo model: ", "演示模型：")
    with contextlib.suppress(OSError, ValueError, KeyError):
        told = json.loads((folder / "running.json").read_bytes())
        if _alive(told["router"]):
            yield Finding("ok", subject, f"{text}{told['state']}, {told['detail']}, pid {told['pid']}")
            return
    if (folder / local_weights.FILE).exists():
        yield Finding("ok", subject, text + patient.words("weights checked", "权重校验通过"))
    else:
        yield Finding(
            "ok", subject, text + patient.words("installed, made ready at the first start", "已安装，首次启动时准备")
        )


def _reach(patient: Doctor) -> Iterable[Finding]:
    on = [provider for provider in patient.providers if provider.off is None and provider.vendor.name != "demo"]
    if not patient.connect or not on:
        return
    from router.cli.probe import probe_all

    for name, (fine, text) in probe_all(on).items():
        fix = patient.words("look at its key, base_url and proxy", "请检查密钥、base_url 与代理")
        yield Finding("ok" if fine else "fail", f"reach {name}", text, None if fine else fix)


def _leftovers(patient: Doctor) -> Iterable[Finding]:
    """Processes of ours whose router is gone. They end with it; this is for when that went wrong."""
    folder = patient.data_dir
    if folder is None:
        return
    found = []
    store = folder / "store" / "server.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        pid = int(json.loads(store.read_bytes())["pid"])
        if _alive(pid) and not _locked(folder / "lock"):
            found.append((pid, "store"))
    mark = str((folder / "demo").resolve()).encode()
    for process in Path("/proc").glob("[0-9]*") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes()
            if b"router.local_process" in words and mark in words and not _locked(folder / "demo" / "owner.lock"):
                found.append((int(process.name), "demo model"))
    for pid, what in found:
        text = patient.words(f"{what}: process {pid} has lost its router", f"{what}：进程 {pid} 已失去其路由进程")
        yield Finding("warn", "leftovers", text, f"kill {pid}")


# --- small things ---------------------------------------------------------------------------------------------------


def _get_json(base_url: str, path: str) -> dict[str, object] | None:
    parts = urlsplit(base_url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        with contextlib.closing(kind(parts.hostname or "", parts.port, timeout=_SECONDS)) as connection:
            connection.request("GET", parts.path.rstrip("/") + path)
            answer = json.loads(connection.getresponse().read(65536))
    except (OSError, ValueError, http.client.HTTPException):
        return None  # whoever is there does not speak as we ask, which is the answer
    return answer if isinstance(answer, dict) else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _locked(path: Path) -> bool:
    """Whether a process holds the lock of this file. Looks for an instant; starters try more than once."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


CHECKS: Final[tuple[Callable[[Doctor], Iterable[Finding]], ...]] = (
    _python,
    _packages,
    _clock,
    _open_files,
    _config,
    _data,
    _store,
    _ports,
    _providers,
    _ollama,
    _demo,
    _reach,
    _leftovers,
)
