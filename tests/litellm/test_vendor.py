"""What reaches the library and what does not. Nothing here imports it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from providers.call import Call, File, Image, Message, Sampling, Text, Tool
from providers.errors import UnsupportedFeature
from providers.litellm import CHAT_FIELDS, make_vendor
from providers.vendor import Vendor
from providers.wires.openai import WIRE

ROOT = Path(__file__).parents[2]
VENDOR: Vendor = make_vendor({"provider": "azure", "api_version": "2024-10-21"})


def sent(call: Call, key: str | None = "sk-test-key") -> Any:
    return orjson.loads(VENDOR.request(call, "gpt-4o", key).body)


def chat(*parts: Any, **fields: Any) -> Call:
    given: dict[str, Any] = {"wire": "openai", "op": "chat", "kind": "chat", "asked_model": "m", "raw": {}}
    return Call(**(given | {"messages": (Message("user", parts or (Text("hi"),)),)} | fields))


def test_the_call_is_named_apart_from_the_operators_options() -> None:
    assert sent(chat(sampling=Sampling(temperature=0.5))) == {
        "provider": "azure",
        "options": {"api_version": "2024-10-21"},
        "call": {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5},
    }
    request = VENDOR.request(chat(), "gpt-4o", "sk-test-key")
    assert request.headers["authorization"] == "Bearer sk-test-key"
    assert b"sk-test-key" not in request.body
    assert "authorization" not in VENDOR.request(chat(), "gpt-4o", None).headers


@pytest.mark.parametrize(
    "field",
    [
        "api_base",
        "base_url",
        "api_key",
        "api_version",
        "organization",
        "headers",
        "extra_headers",
        "custom_llm_provider",
        "extra_body",
        "fallbacks",
        "metadata",
        "mock_response",
        "model_list",
        "num_retries",
        "timeout",
        "proxy",
        "litellm_params",
        "deployment_id",
        "aws_access_key_id",
    ],
)
def test_a_client_cannot_steer_the_library(field: str) -> None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}], field: "http://127.0.0.1:1"}
    if field == "metadata":
        body[field] = {"a": "b"}
    call = WIRE.read_call("chat", body)
    assert set(sent(call)["call"]) <= CHAT_FIELDS
    assert b"127.0.0.1:1" not in VENDOR.request(call, "gpt-4o", None).body


@pytest.mark.parametrize(
    "call",
    [
        chat(Image(url="http://169.254.169.254/latest/meta-data")),
        chat(File(url="http://169.254.169.254/latest/meta-data")),
        chat(File(file_id="file-1")),
        chat(tools=(Tool("web", extras={"type": "mcp", "server_url": "http://127.0.0.1"}),)),
        chat(kind="text", op="completions", prompt="a", suffix="b", messages=()),
    ],
)
def test_nothing_is_fetched_and_nothing_foreign_is_passed(call: Call) -> None:
    with pytest.raises(UnsupportedFeature):
        sent(call)


@pytest.mark.parametrize("options", [{}, {"provider": ""}, {"provider": "azure", "api_key": "x"}])
def test_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="litellm"):
        make_vendor(options)


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True, cwd=ROOT, timeout=60
    ).stdout.strip()


def test_the_library_is_not_imported_until_it_is_used() -> None:
    code = (
        "import sys, router.litellm_transport as t, providers.litellm\n"
        "t.LitellmTransport(); print(t.missing(), 'litellm' in sys.modules)"
    )
    assert python(code) == "None False"


def test_without_the_library_there_is_a_clear_word() -> None:
    code = """
import asyncio, sys
sys.modules["litellm"] = None
from providers.errors import Unreachable
from providers.vendor import UpstreamRequest
from router.litellm_transport import LitellmTransport, missing
from router.transport import Route
print(missing())
async def main():
    transport = LitellmTransport()
    for _ in range(2):
        try:
            await transport.open(Route(""), UpstreamRequest("POST", "/chat/completions", {}, b"{}"))
        except Unreachable as error:
            print("pip install" in error.message)
    await transport.close()
asyncio.run(main())
"""
    said = python(code).split("\n")
    assert "pip install 'litellm==" in said[0]
    assert said[1:] == ["True", "True"]
