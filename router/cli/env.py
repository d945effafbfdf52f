"""`switchyard env CLIENT`: the settings that point a client at the router, to paste."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template
from typing import Annotated, Final, NamedTuple

import typer

from router.cli.address import KeyOption, UrlOption, router_key, router_url
from router.cli.common import ConfigOption, JsonOption, print_json, print_table

PLACEHOLDER: Final = "$SWITCHYARD_API_KEY"
MODEL: Final = "demo/gemma-3-270m"


class Client(NamedTuple):
    """`text` is filled in with `url` (no /v1), `host` (host:port), `key` and `model`; a dollar sign is doubled."""

    about: str
    text: str


CLIENTS: Final[Mapping[str, Client]] = {
    "openai": Client(
        "openai SDK for Python and JavaScript, and most that build on it",
        'export OPENAI_BASE_URL="$url/v1"\nexport OPENAI_API_KEY="$key"\n',
    ),
    "ollama": Client(
        "ollama SDK for Python; the ollama command sends no key and needs a listener with `anonymous`",
        'export OLLAMA_HOST="$url"\nexport OLLAMA_API_KEY="$key"\n',
    ),
    "aisuite": Client(
        "aisuite, models as openai:$model",
        'export OPENAI_API_KEY="$key"\n'
        "# import aisuite\n"
        '# client = aisuite.Client({"openai": {"base_url": "$url/v1"}})\n'
        '# client.chat.completions.create(model="openai:$model", messages=[...])\n',
    ),
    "langchain": Client(
        "langchain-openai",
        'export OPENAI_API_BASE="$url/v1"\n'
        'export OPENAI_API_KEY="$key"\n'
        "# from langchain_openai import ChatOpenAI, OpenAIEmbeddings\n"
        '# ChatOpenAI(model="$model")\n'
        "# OpenAIEmbeddings(model=..., check_embedding_ctx_length=False)  # else it sends token numbers\n",
    ),
    "open-webui": Client(
        "Open WebUI, environment of its container",
        'export OPENAI_API_BASE_URLS="$url/v1"\n'
        'export OPENAI_API_KEYS="$key"\n'
        'export ENABLE_OLLAMA_API="false"\n'
        "# from a container, put the host's address (host.docker.internal) in place of 127.0.0.1\n",
    ),
    "continue": Client(
        "Continue, ~/.continue/config.yaml",
        "models:\n"
        "  - name: Switchyard\n"
        "    provider: openai\n"
        "    model: $model\n"
        "    apiBase: $url/v1\n"
        "    apiKey: $key\n",
    ),
    "cline": Client(
        'Cline: API provider "OpenAI Compatible"',
        "Base URL   $url/v1\nAPI Key    $key\nModel ID   $model\n",
    ),
    "nextchat": Client(
        "NextChat, environment of its server; the address is without /v1",
        'export BASE_URL="$url"\n'
        'export OPENAI_API_KEY="$key"\n'
        'export CUSTOM_MODELS="+$model"  # it hides names that do not begin with gpt-\n',
    ),
    "curl": Client(
        "a line to try",
        "curl $url/v1/chat/completions \\\n"
        '  -H "Authorization: Bearer $key" -H "Content-Type: application/json" \\\n'
        '  -d \'{"model": "$model", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}\'\n',
    ),
}


def env(
    client: Annotated[str | None, typer.Argument(metavar="[CLIENT]", help="Which program; none: the list.")] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    model: Annotated[str, typer.Option("--model", help="A model name to fill in.")] = MODEL,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the settings that point a client at the router. Without CLIENT: the clients it knows.

    The key is the one of --key or the environment; without one $SWITCHYARD_API_KEY stands in its place. For shells:
    eval "$(switchyard env openai)".
    """
    if client is None:
        if as_json:
            print_json({name: filled(known.about, "", None, model) for name, known in CLIENTS.items()})
        else:
            print_table(
                ("client", "about"), ((name, filled(known.about, "", None, model)) for name, known in CLIENTS.items())
            )
        return
    known = CLIENTS.get(client.lower())
    if known is None:
        from difflib import get_close_matches

        near = get_close_matches(client.lower(), CLIENTS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(CLIENTS)}"
        typer.echo(f"switchyard: no settings for {client}{hint}", err=True)
        raise typer.Exit(2)
    address, given = router_url(url, config), router_key(key)
    text = filled(known.text, address, given, model)
    if as_json:
        print_json({"client": client.lower(), "url": address, "key": given, "settings": text})
    else:
        typer.echo(text, nl=False)


def filled(text: str, url: str, key: str | None, model: str) -> str:
    host = url.partition("://")[2]
    return Template(text).substitute(url=url, host=host, key=key or PLACEHOLDER, model=model)
