"""From the file's bytes to a `Config`, or to everything that is wrong with them.

Two passes report side by side, so that one run shows every problem: pydantic checks each setting by itself, and the
cross checks below look at what settings say about each other. The cross checks work on the plain tree, not on the
model, because a file with a wrong type in one row has no model and still deserves to hear about the other rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from providers.registry import VENDORS
from router.config import Config, ConfigErrors, Origin, Problem
from router.config_hosts import clean_url, is_loopback, ollama_problem, url_problem
from router.config_yaml import Document, KeyPath, Mark, read, shorten
from router.patterns import Pattern, nearest

MAX_FILE_BYTES: Final = 1024 * 1024
MAX_PROBLEMS: Final = 200

Report = Callable[[KeyPath, str], None]


class KeyOf(tuple[str | int, ...]):
    """A path that means the name itself, not the value behind it."""

    __slots__ = ()


# -- the file -----------------------------------------------------------------------------------------------------


def read_text(path: Path) -> tuple[str, bytes]:
    """The file as text and as bytes. Raises ConfigErrors when there is no text to be had."""

    def refuse(message: str, line: int = 1) -> ConfigErrors:
        return ConfigErrors([Problem(str(path), line, 1, message)])

    try:
        if path.is_dir():
            raise refuse("is a directory; name the file")
        if path.exists() and not path.is_file():
            raise refuse("is not a regular file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise refuse("there is no such file; name one with --config or SWITCHYARD_CONFIG") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise refuse(f"cannot be read: {why or type(error).__name__}") from error
    if len(data) > MAX_FILE_BYTES:
        raise refuse(f"is larger than {MAX_FILE_BYTES // 1024} KiB, which no config needs")
    if b"\0" in data:
        raise refuse("is a binary file, not YAML text", data.count(b"\n", 0, data.index(b"\0")) + 1)
    try:
        return data.decode("utf-8-sig"), data
    except UnicodeDecodeError as error:
        raise refuse("is not UTF-8 text", data.count(b"\n", 0, error.start) + 1) from error


# -- all together -------------------------------------------------------------------------------------------------


def check_text(text: str, file: str, env: Mapping[str, str]) -> tuple[Config, Origin]:
    """The config that `text` holds. Raises ConfigErrors with every problem, in the order of the file."""
    document = read(text, env)
    problems = [Problem(file, *finding) for finding in _flat(document)]
    warnings: list[Problem] = []

    def at(target: list[Problem]) -> Report:
        return lambda path, message: target.append(Problem(file, *place_of(document, path), message))

    refused = {finding.mark for finding in document.findings}

    def once(path: KeyPath, message: str) -> None:
        """A scalar that the reader refused has had its line: what it fails after that is only a consequence."""
        mark = None if isinstance(path, KeyOf) else document.values.get(path)
        if mark not in refused or isinstance(_get(document.value, path), dict | list):
            at(problems)(path, message)

    config: Config | None = None
    if document.value is None and not problems:
        problems.append(Problem(file, 1, 1, "is empty; start from config/switchyard.yaml"))
    elif document.value is not None and not isinstance(document.value, dict):
        problems.append(Problem(file, *document.values[()], "must be a mapping (name: value) at the top"))
    elif document.value is not None:
        raw = _with_environment(document.value, env)
        config = validate(raw, document, once, Config)
        _cross_check(raw, once)
        if config is not None and config.redis.url.get_secret_value() == "embedded" and _forbidden(env):
            once(("redis", "url"), f"redis.url {_OWN_STORE}")
        _warn(raw, document, at(warnings))
    if problems or config is None:
        raise ConfigErrors(sorted(set(problems))[:MAX_PROBLEMS], sorted(set(warnings)))
    return config, Origin(file, "", document.references, tuple(sorted(set(warnings))), document.values)


def _flat(document: Document) -> Iterator[tuple[int, int, str]]:
    for finding in document.findings:
        yield finding.mark.line, finding.mark.column, finding.message


def _with_environment(raw: dict[str, Any], env: Mapping[str, str]) -> dict[str, Any]:
    """The variables of the admin token and of the metrics' count whether or not the file mentions them."""
    server = raw.get("server", {})
    metrics = server.get("metrics", {}) if isinstance(server, dict) else None
    more: dict[str, Any] = {}
    if (token := env.get("SWITCHYARD_ADMIN_TOKEN")) and isinstance(server, dict) and not server.get("admin_token"):
        more["admin_token"] = token
    if (token := env.get("SWITCHYARD_METRICS_TOKEN")) and isinstance(metrics, dict) and not metrics.get("token"):
        more["metrics"] = {**metrics, "token": token}
    return {**raw, "server": {**server, **more}} if more else raw


_OWN_STORE: Final = (
    "is `embedded`, which SWITCHYARD_EMBEDDED forbids here: what others store, this router would not know. Write"
    ' redis: {url: "${SWITCHYARD_REDIS_URL}"}'
)


def _forbidden(env: Mapping[str, str]) -> bool:
    """Whether a deployment with a store of its own says that none may be started."""
    return env.get("SWITCHYARD_EMBEDDED", "").strip().lower() in ("never", "no", "off", "false", "0")


def place_of(document: Document, path: KeyPath) -> Mark:
    """The place of the value at `path`, else of the nearest thing around it."""
    if isinstance(path, KeyOf) and path in document.keys:
        return document.keys[path]
    for length in range(len(path), -1, -1):
        mark = document.values.get(path[:length]) or document.keys.get(path[:length])
        if mark is not None:
            return mark
    return Mark(1, 1)


# -- one setting at a time ----------------------------------------------------------------------------------------

_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_MESSAGES: Final[Mapping[str, str]] = {
    "missing": "is missing",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be valid text",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "may hold only letters, digits and . _ -",
    "dict_type": "must be a mapping (name: value)",
    "model_type": "must be a mapping (name: value)",
    "model_attributes_type": "must be a mapping (name: value)",
    "tuple_type": "must be a list",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must hold at least {min_length} entry",
    "literal_error": "must be {expected}",
}
_SECRETS: Final = frozenset({"api_key", "admin_token", "token", "proxy", "headers", "url", "options"})
"""Settings whose value no message repeats."""


Checked = TypeVar("Checked", bound=BaseModel)


def validate(raw: dict[str, Any], document: Document, report: Report, kind: type[Checked]) -> Checked | None:
    """`raw` as a `kind`, or None when something in it was reported."""
    try:
        return kind.model_validate(raw)
    except ValidationError as errors:
        found = errors.errors(include_url=False)
        for error in found:
            size = len(error["loc"])
            if error["type"] == "too_short" and any(
                len(other["loc"]) > size and other["loc"][:size] == error["loc"] for other in found
            ):
                continue  # the list has entries, only none that is right
            path, is_key = _loc(error["loc"], raw)
            place = KeyOf(path) if is_key or error["type"] == "extra_forbidden" else path
            report(place, _sentence(error, path, is_key, raw, document, kind))
    return None


def _loc(loc: tuple[int | str, ...], raw: object) -> tuple[KeyPath, bool]:
    """pydantic's location as a path in the file. It adds steps of its own for unions, and `[key]` for a key."""
    if loc and loc[-1] == "[key]":
        return loc[:-1], True
    path: list[str | int] = []
    value = raw
    for index, step in enumerate(loc):
        if _holds(value, step):
            value = value[step]  # type: ignore[index]  # `_holds` has looked
        elif index + 1 < len(loc):
            continue  # a union's step
        path.append(step)
    return tuple(path), False


def _sentence(
    error: ErrorDetails, path: KeyPath, is_key: bool, raw: object, document: Document, root: type[BaseModel]
) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        return _unknown(str(path[-1]), _fields_at(path[:-1], root), dotted(path[:-1]))
    message = _MESSAGES.get(kind)
    text = message.format(**error.get("ctx", {})) if message else error["msg"]
    what = f"the name {shorten(str(path[-1]))}" if is_key else (dotted(path) or "the file")
    sentence = f"{what} {text}"
    if is_key or kind in ("missing", "string_too_short", "secret_file", "header", "served_models"):
        value: object = None
    else:
        value = _get(raw, path)
    names = document.references.get(path, ())
    if isinstance(value, str | int | float) and not _SECRETS & set(path):
        sentence += f", not {_show(value)}"
        if isinstance(value, str) and not names and kind in ("int_type", "float_type", "bool_type"):
            sentence += " (in quotes it is text)"
    if names:
        sentence += f" (from {', '.join(names)})"
    if kind == "literal_error" and isinstance(value, str):
        sentence += _hint(value, re.findall(r"'([^']+)'", text))
    return sentence


def _show(value: str | int | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{shorten(value)}"' if isinstance(value, str) else str(value)


def _get(value: object, path: Sequence[str | int]) -> Any:  # a plain tree of any shape
    for step in path:
        if not _holds(value, step):
            return None
        value = value[step]  # type: ignore[index]  # `_holds` has looked
    return value


def _holds(value: object, step: str | int) -> bool:
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and step < len(value)


def dotted(path: Sequence[str | int]) -> str:
    """`server.listen[0].port`; a name that is no plain word stands in quotes."""
    out = ""
    for step in path:
        if isinstance(step, int):
            out += f"[{step}]"
        else:
            word = step if _PLAIN.match(step) else f'"{shorten(step)}"'
            out += f".{word}" if out else word
    return out


def _fields_at(path: KeyPath, root: type[BaseModel] = Config) -> list[str]:
    """The settings that the section at `path` may hold."""
    kind: Any = root
    for step in path:
        kind = _bare(kind)
        if get_origin(kind) is tuple and isinstance(step, str):
            kind = _bare(get_args(kind)[0])  # a list that may be written as its only entry
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            named = {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
            kind = named.get(str(step))
        else:
            arguments = get_args(kind)
            kind = arguments[1 if get_origin(kind) is dict else 0] if arguments else None
    kind = _bare(kind)
    if get_origin(kind) is tuple and path and isinstance(path[-1], str):
        kind = _bare(get_args(kind)[0])
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [field.alias or name for name, field in kind.model_fields.items()]
    return []


def _bare(kind: Any) -> Any:  # an annotation has no better type
    """The annotation without `Annotated` and `| None`."""
    while True:
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif get_origin(kind) in (Union, UnionType):
            kind = next(argument for argument in get_args(kind) if argument is not type(None))
        else:
            return kind


def _unknown(name: str, known: Sequence[str], where: str) -> str:
    place = f"in {where}" if where else "at the top"
    return f"unknown setting {_show(name)} {place}{_hint(name, known)}"


def _hint(name: str, known: Sequence[str]) -> str:
    """What was probably meant; where nothing is near and the choice is small, the whole choice."""
    lower = {candidate.lower(): candidate for candidate in known}
    near = get_close_matches(name.lower()[:100], list(lower), n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{lower[near[0]]}"?'
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 24 else ""


# -- what settings say about each other ---------------------------------------------------------------------------


def _rows(raw: object, *path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    section = _get(raw, path)
    if isinstance(section, dict):
        yield from ((name, row) for name, row in section.items() if isinstance(row, dict))


def _names(raw: object, section: str) -> list[str]:
    rows = _get(raw, (section,))
    return list(rows) if isinstance(rows, dict) else []


def _texts(raw: object, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    values = _get(raw, path)
    if isinstance(values, list):
        yield from (((*path, index), value) for index, value in enumerate(values) if isinstance(value, str) and value)


def _targets(raw: object, model: str) -> Iterator[tuple[KeyPath, str]]:
    path: KeyPath = ("models", model, "targets")
    values = _get(raw, path)
    for index, value in enumerate(values if isinstance(values, list) else ()):
        inner: KeyPath = (*path, index)
        if isinstance(value, dict):
            inner, value = (*inner, "to"), value.get("to")
        if isinstance(value, str) and value:
            yield inner, value


def _cross_check(raw: dict[str, Any], report: Report) -> None:
    for check in (_check_listeners, _check_providers, _check_targets, _check_fallback, _check_telemetry):
        check(raw, report)


def _check_listeners(raw: dict[str, Any], report: Report) -> None:
    seen: dict[tuple[str, object], int] = {}
    listeners = _get(raw, ("server", "listen"))
    for index, row in enumerate(listeners if isinstance(listeners, list) else ()):
        if not isinstance(row, dict):
            continue
        path: KeyPath = ("server", "listen", index)
        host, port = row.get("host", "127.0.0.1"), str(row.get("port", 8080))
        if not isinstance(host, str):
            continue
        first = seen.setdefault((host.lower(), port), index)
        if first != index and port != "0":
            report(path, f"{dotted(path)} listens on {host}:{port}, as server.listen[{first}] does")
        remote_allowed = row.get("allow_remote", False)
        if (
            row.get("anonymous")
            and not is_loopback(host)
            and str(remote_allowed).lower() in ("false", "no", "0", "off")
        ):
            report(
                (*path, "anonymous"),
                f"{dotted(path)}.anonymous serves callers without a key, and other machines can reach {host}: "
                "listen on 127.0.0.1, or write allow_remote: true beside it",
            )
    _check_metrics(raw, seen, report)


def _check_metrics(raw: dict[str, Any], seen: Mapping[tuple[str, object], int], report: Report) -> None:
    path: KeyPath = ("server", "metrics", "listen")
    row = _get(raw, path)
    if not isinstance(row, dict):
        return
    host, port = row.get("host", "127.0.0.1"), str(row.get("port", 9464))
    if not isinstance(host, str):
        return
    if port != "0" and (taken := seen.get((host.lower(), port))) is not None:
        report(path, f"server.metrics.listen listens on {host}:{port}, as server.listen[{taken}] does")
    closed = str(row.get("allow_remote", False)).lower() in ("false", "no", "0", "off")
    token = _get(raw, ("server", "metrics", "token"))
    if closed and not (isinstance(token, str) and token.strip()) and not is_loopback(host):
        report(
            path,
            f"server.metrics.listen shows the metrics without a token, and other machines can reach {host}: set "
            "server.metrics.token, listen on 127.0.0.1, or write allow_remote: true beside it",
        )


def _check_telemetry(raw: dict[str, Any], report: Report) -> None:
    path: KeyPath = ("telemetry", "otlp_endpoint")
    url = _get(raw, path)
    if isinstance(url, str) and url.strip() and (wrong := url_problem(url.strip())):
        report(path, f"telemetry.otlp_endpoint {wrong.replace('api.example.com/v1', 'collector.example.com:4318')}")


def _check_providers(raw: dict[str, Any], report: Report) -> None:
    for name, row in _rows(raw, "providers"):
        path: KeyPath = ("providers", name)
        vendor = row.get("vendor")
        if not isinstance(vendor, str) or not vendor:
            continue
        if vendor not in VENDORS:
            report(
                (*path, "vendor"),
                f"{dotted(path)}.vendor: unknown vendor {_show(vendor)}{_hint(vendor, list(VENDORS))}",
            )
            continue
        url = row.get("base_url")
        if isinstance(url, str) and url.strip():
            wrong = ollama_problem(url) if vendor == "ollama" else url_problem(clean_url(url))
            if wrong:
                report((*path, "base_url"), f"{dotted(path)}.base_url {wrong}")
        elif vendor == "openai-compatible" and not row.get("options"):
            report(path, f"{dotted(path)}.base_url is missing: vendor openai-compatible has no address of its own")
        if vendor == "litellm" and not row.get("litellm_provider"):
            report(path, f"{dotted(path)}.litellm_provider is missing: for example bedrock, azure or anthropic")
        if vendor != "litellm" and row.get("litellm_provider"):
            report((*path, "litellm_provider"), f"{dotted(path)}.litellm_provider is only for vendor litellm")
        rows = row.get("model_limits")
        for pattern in rows if isinstance(rows, dict) else ():
            if "**" in str(pattern):
                report(
                    KeyOf((*path, "model_limits", pattern)),
                    f'the name {shorten(str(pattern))} holds "**": one "*" already stands for any text',
                )
        bundle = row.get("ca_bundle")
        if isinstance(bundle, str) and bundle and not Path(bundle).is_file():
            report((*path, "ca_bundle"), f"{dotted(path)}.ca_bundle: there is no file {_show(bundle)}")


def _check_targets(raw: dict[str, Any], report: Report) -> None:
    providers, models = _names(raw, "providers"), _names(raw, "models")
    for model in models:
        if "**" in model:
            report(
                KeyOf(("models", model)), f'the name {shorten(model)} holds "**": one "*" already stands for any text'
            )
        for path, target in _targets(raw, model):
            wrong = _target_problem(target, providers, models)
            if wrong is None and "*" in target and "*" not in model:
                wrong = f'"*" needs a model name with a "*" to take its text from, and {_show(model)} has none'
            if wrong is None and "**" in target:
                wrong = f'{_show(target)} holds "**": write one "*"'
            if wrong:
                report(path, f"{dotted(path)}: {wrong}")


def _target_problem(target: str, providers: Sequence[str], models: Sequence[str]) -> str | None:
    head, slash, sent = target.partition("/")
    if not slash:
        known = " (a model name can stand in fallback only)" if target in models else _hint(target, providers)
        return f"{_show(target)} must be written provider/model{known}"
    if head not in providers:
        return f"unknown provider {_show(head)}{_hint(head, providers)}"
    return None if sent else f"{_show(target)} lacks the model after the slash"


def _check_fallback(raw: dict[str, Any], report: Report) -> None:
    providers, models = _names(raw, "providers"), _names(raw, "models")
    edges: dict[str, list[tuple[KeyPath, str]]] = {}
    for owner in (None, *models):
        base: KeyPath = ("fallback",) if owner is None else ("models", owner, "fallback")
        for path, entry in _texts(raw, base):
            row = fallback_row(entry, models, providers)
            if row is not None:
                if owner is not None:
                    edges.setdefault(owner, []).append((path, row))
            elif "*" in entry:
                report(path, f'{dotted(path)}: "*" has no meaning in fallback; name one model')
            elif "/" in entry:
                if wrong := _target_problem(entry, providers, models):
                    report(path, f"{dotted(path)}: {wrong}")
            else:
                hint = _hint(entry, models) if len(models) <= 24 else _hint(entry, [*models, *providers])
                report(path, f"{dotted(path)}: {_show(entry)} is neither a name of models nor provider/model{hint}")
    for path, loop in _cycles(edges):
        report(path, f"{dotted(path)}: fallback runs in a circle: {' -> '.join(loop)}")


def fallback_row(entry: str, models: Collection[str], providers: Collection[str]) -> str | None:
    """The row of `models` that a fallback entry names, or None when it is a target written out (or nothing)."""
    if entry in models:
        return entry
    head, slash, _ = entry.partition("/")
    if slash and head in providers:
        return None
    best = nearest(entry, (Pattern(model) for model in models if "*" in model))
    return best[0].text if best else None


def _cycles(edges: Mapping[str, list[tuple[KeyPath, str]]]) -> Iterator[tuple[KeyPath, list[str]]]:
    """Every circle once, at the entry that closes it."""
    done: set[str] = set()
    for start in edges:
        trail: list[str] = []
        stack: list[tuple[str, Iterator[tuple[KeyPath, str]]]] = []

        def enter(name: str, trail: list[str] = trail, stack: list[Any] = stack) -> None:
            trail.append(name)
            stack.append((name, iter(edges.get(name, ()))))

        if start in done:
            continue
        enter(start)
        while stack:
            name, following = stack[-1]
            step = next(following, None)
            if step is None:
                done.add(name)
                stack.pop()
                trail.pop()
            elif step[1] in trail:
                yield step[0], [*trail[trail.index(step[1]) :], step[1]]
            elif step[1] not in done:
                enter(step[1])


# -- warnings -----------------------------------------------------------------------------------------------------

_SECRET_HEADERS: Final = frozenset(
    {"authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie"}
)
_SECRET_LENGTH: Final = 12
"""Shorter keys are the placeholders that local servers ask for (`none`, `EMPTY`, `ollama`)."""


_NOT_FOR_LITELLM: Final = ("proxy", "ca_bundle")
"""Settings of our own HTTP client, which litellm's providers are not reached by."""


def _warn(raw: dict[str, Any], document: Document, report: Report) -> None:
    for name, row in _rows(raw, "providers"):
        path: KeyPath = ("providers", name)
        _warn_literal((*path, "api_key"), document, report)
        for setting in _NOT_FOR_LITELLM if row.get("vendor") == "litellm" else ():
            if row.get(setting):
                report(
                    (*path, setting),
                    f"{dotted((*path, setting))} has no effect with vendor litellm: its library reads HTTPS_PROXY and"
                    " SSL_CERT_FILE of the environment",
                )
        for header in row["headers"] if isinstance(row.get("headers"), dict) else ():
            if str(header).lower() in _SECRET_HEADERS:
                _warn_literal((*path, "headers", header), document, report)
    collector = _get(raw, ("telemetry", "headers"))
    for header in collector if isinstance(collector, dict) else ():
        if str(header).lower() in _SECRET_HEADERS:
            _warn_literal(("telemetry", "headers", header), document, report)
    _warn_literal(("server", "admin_token"), document, report)
    _warn_literal(("server", "metrics", "token"), document, report)
    if re.search(r"://[^/@]*:[^/@]+@", document.literals.get(("redis", "url"), "")):
        report(("redis", "url"), "redis.url holds a password in plain text: write ${NAME} or file:/path instead")
    listeners = _get(raw, ("server", "listen"))
    for index, row in enumerate(listeners if isinstance(listeners, list) else ()):
        if isinstance(row, dict) and row.get("anonymous") and not is_loopback(str(row.get("host", "127.0.0.1"))):
            report(
                ("server", "listen", index), f"server.listen[{index}] serves callers without a key to other machines"
            )
    for place, network in _texts(raw, ("server", "trusted_proxies")):
        if network.endswith("/0"):
            report(place, f"{dotted(place)} lets every caller choose its own address: list only the proxies in front")
    chain = list(_texts(raw, ("fallback",)))
    if chain:
        path, last = chain[-1]
        row = _get(raw, ("providers", last.partition("/")[0]))
        # Whether an openai-compatible row is local shows only by its profile; where that is not known, no warning.
        maybe_local = ("ollama", "demo", "openai-compatible")
        if isinstance(row, dict) and not row.get("local", row.get("vendor") in maybe_local):
            report(path, f"{dotted(path)}: the chain ends at {_show(last)}, which is not local")


def _warn_literal(path: KeyPath, document: Document, report: Report) -> None:
    text = document.literals.get(path, "")
    if len(text) >= _SECRET_LENGTH and not text.startswith("file:"):
        report(path, f"{dotted(path)} holds a secret in plain text: write ${{NAME}} or file:/path instead")
