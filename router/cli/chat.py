"""`switchyard chat MODEL`: talk to a model through a running router, as a client would."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

import typer

from router.cli.address import KeyOption, UrlOption, router_key, router_url, speaks_chinese
from router.cli.common import ConfigOption

SECONDS = 600.0
"""Longest silence: a large local model may be loaded first."""


class ChatError(Exception):
    """Why there is no answer, for the person at the terminal."""


class Router(NamedTuple):
    url: str
    key: str | None


class Note(NamedTuple):
    """What the router says of an answer beside its text."""

    text: str


def chat(
    model: Annotated[str, typer.Argument(help="A model name, as `switchyard models` lists them.")],
    prompt: Annotated[
        str | None, typer.Argument(help="Ask this and end. `-` reads it from standard input. None: a conversation.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="Instructions for the model.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is sober, 1 is lively.")] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    config: ConfigOption = None,
) -> None:
    """Talk to a model through the running router. Ctrl-C stops an answer; /new forgets, /exit or Ctrl-D ends.

    Ends with 1 when a single question gets no answer.
    """
    router = Router(router_url(url, config), router_key(key))
    wishes = {"max_tokens": max_tokens, "temperature": temperature}
    body: dict[str, Any] = {"model": model, **{name: value for name, value in wishes.items() if value is not None}}
    opening = [{"role": "system", "content": system}] if system else []
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read()
    if prompt is not None:
        try:
            _show(router, {**body, "messages": [*opening, {"role": "user", "content": prompt}]})
        except ChatError as error:
            typer.echo(f"switchyard: {error}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as stopped:
            raise typer.Exit(130) from stopped
    else:
        _converse(router, body, opening)


def _converse(router: Router, body: dict[str, Any], opening: list[dict[str, str]]) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - arrow keys and history for input()

    typer.echo(
        f"{body['model']} @ {router.url}   "
        + ("/new 重新开始  /exit 退出  Ctrl-C 停止回答" if speaks_chinese() else "/new  /exit  Ctrl-C stops an answer")
    )
    messages = list(opening)
    while True:
        try:
            asked = input("> ").strip()
        except EOFError:
            typer.echo("")
            return
        except KeyboardInterrupt:
            typer.echo("")
            continue
        if asked in ("/exit", "/quit", "/bye"):
            return
        if asked == "/new":
            messages = list(opening)
        elif asked.startswith("/"):
            typer.echo("/new  /exit", err=True)
        elif asked:
            messages.append({"role": "user", "content": asked})
            try:
                messages.append({"role": "assistant", "content": _show(router, {**body, "messages": messages})})
            except ChatError as error:
                messages.pop()
                typer.echo(f"switchyard: {error}", err=True)


def _show(router: Router, body: dict[str, Any]) -> str:
    """Print the answer as it comes, and give it. Ctrl-C stops it and keeps what was said; before that it rises."""
    said: list[str] = []
    try:
        for piece in stream(router, body):
            if isinstance(piece, Note):
                typer.echo(f"[{piece.text}]", err=True)
            else:
                said.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        if not said:
            typer.echo("", err=True)
            raise ChatError("已停止" if speaks_chinese() else "stopped") from None
    except ChatError:
        if said:
            sys.stdout.write("\n")
        raise
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(said)


def stream(router: Router, body: dict[str, Any]) -> Iterator[str | Note]:
    """The pieces of one answer. Raises ChatError. Leaving the loop hangs up, which ends the call in the router."""
    parts = urlsplit(router.url)
    kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}.get(parts.scheme)
    if kind is None or not parts.hostname:
        raise ChatError(f"{router.url} is no http address")
    headers = {"content-type": "application/json", "accept": "text/event-stream"}
    if router.key:
        headers["authorization"] = f"Bearer {router.key}"
    try:
        connection = kind(parts.hostname, parts.port, timeout=SECONDS)
    except ValueError as error:
        raise ChatError(f"{router.url} is no http address: {error}") from error
    try:
        with contextlib.closing(connection):
            data = json.dumps({**body, "stream": True}).encode()
            connection.request("POST", f"{parts.path}/v1/chat/completions", data, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise ChatError(_refusal(router, response.status, response.read(65536)))
            if reason := response.headers.get("x-switchyard-fallback"):
                who = response.headers.get("x-switchyard-provider", "?")
                yield Note(_words(f"answered by {who}: {reason}", f"由 {who} 回答：{reason}"))
            yield from _texts(response)
    except ConnectionRefusedError as error:
        raise ChatError(
            _words(
                f"nothing answers at {router.url}: start it with `switchyard serve`, or say --url",
                f"{router.url} 没有响应：请先运行 `switchyard serve`，或用 --url 指定地址",
            )
        ) from error
    except socket.gaierror as error:
        raise ChatError(f"{parts.hostname}: {error.strerror}") from error
    except TimeoutError as error:
        raise ChatError(f"no answer from {router.url} for {SECONDS:g} seconds") from error
    except (OSError, http.client.HTTPException) as error:
        raise ChatError(f"the connection to {router.url} broke: {str(error) or type(error).__name__}") from error


def _texts(response: http.client.HTTPResponse) -> Iterator[str | Note]:
    ended = False
    for line in response:
        name, _, value = line.decode("utf-8", "replace").strip().partition(":")
        if name != "data":
            continue
        if value.strip() == "[DONE]":
            return
        chunk = _parsed(value)
        if "error" in chunk:
            raise ChatError(_message(chunk) or value.strip())
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            if text := delta.get("content") or delta.get("refusal"):
                yield text
            if choice.get("finish_reason"):
                ended = True
                if choice["finish_reason"] not in ("stop", "tool_calls"):
                    yield Note(str(choice["finish_reason"]))
    if not ended:
        raise ChatError("the answer was cut off")


def _refusal(router: Router, status: int, body: bytes) -> str:
    message = _message(_parsed(body.decode("utf-8", "replace"))) or f"status {status}"
    if status == 401 and not router.key:
        hint = _words(
            "no key was given: --key, or export SWITCHYARD_API_KEY (`switchyard keys create` makes one)",
            "没有提供密钥：用 --key 或 export SWITCHYARD_API_KEY（`switchyard keys create` 可创建密钥）",
        )
        return f"{message}\n{hint}"
    if status == 404 and "model" not in message:
        return f"{message} (is {router.url} a Switchyard?)"
    return message


def _parsed(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _message(body: dict[str, Any]) -> str:
    error = body.get("error")
    return str(error.get("message") or "") if isinstance(error, dict) else str(error or "")


def _words(english: str, chinese: str) -> str:
    return chinese if speaks_chinese() else english
