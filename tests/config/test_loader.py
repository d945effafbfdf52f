"""Reading a config file: what comes in, and every problem at once with its place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from router.config import Config, ConfigErrors, load_config

HERE = Path(__file__).parent


def load(tmp_path: Path, text: str | bytes, env: Mapping[str, str] | None = None) -> Config:
    file = tmp_path / "c.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(file, env or {})


def problems(tmp_path: Path, text: str | bytes, env: Mapping[str, str] | None = None) -> list[str]:
    """Every problem as `line:column: message`."""
    with pytest.raises(ConfigErrors) as caught:
        load(tmp_path, text, env)
    return [str(problem).removeprefix(f"{tmp_path}/c.yaml:") for problem in caught.value.problems]


NO_STORE = (
    "1:14: redis.url must be embedded, or start with redis://, rediss:// or unix://"
    " (several servers: redis+sentinel:// or redis+cluster://)"
)
URLS = [
    ("redis: {url: 'http://:pw@h'}", NO_STORE),
    ("redis: {url: ''}", NO_STORE),
    (
        "redis: {url: 'redis://:p/w@h'}",
        "1:14: redis.url is not a URL (special characters in a password are percent-encoded)",
    ),
    ("redis: {url: 'unix://'}", "1:14: redis.url lacks the path of the socket, as in unix:///run/redis.sock"),
    *(
        (
            f"providers: {{a: {{vendor: kimi, proxy: '{url}'}}}}",
            "1:38: providers.a.proxy must be an http or https URL such as http://proxy.example.com:3128",
        )
        for url in ("127.0.0.1:3128", "socks5://u:pw@h:1080", "http://")
    ),
    (
        'providers: {d: {vendor: demo}}\nmodels: {"**": {targets: [d/*]}}',
        '2:10: the name ** holds "**": one "*" already stands for any text',
    ),
    (
        'providers: {d: {vendor: demo}}\nmodels: {"*": {targets: ["d/**"]}}',
        '2:26: models."*".targets[0]: "d/**" holds "**": write one "*"',
    ),
]


@pytest.mark.parametrize(("text", "said"), URLS)
def test_addresses_and_stars_that_mean_nothing(tmp_path: Path, text: str, said: str) -> None:
    assert problems(tmp_path, text) == [said]


@pytest.mark.parametrize("url", ["embedded", "redis://u:p@h:1/0", "rediss://h", "unix:///run/redis.sock"])
def test_addresses_of_the_store(tmp_path: Path, url: str) -> None:
    assert load(tmp_path, f"redis: {{url: '{url}'}}").redis.url.get_secret_value() == url


ONCE = [
    (
        "server: {listen: [{hots: x}]}",
        ['1:20: unknown setting "hots" in server.listen[0]; did you mean "host"?'],
    ),
    ("server: {listen: []}", ["1:18: server.listen must hold at least 1 entry"]),
    ("providers: {a: {vendor: kimi, timeouts: {connect: .inf}}}", ["1:51: .inf is not a usable number"]),
]


@pytest.mark.parametrize(("text", "said"), ONCE)
def test_one_mistake_is_reported_once(tmp_path: Path, text: str, said: list[str]) -> None:
    assert problems(tmp_path, text) == said


# -- one line per problem: the file, and what is said of it -------------------------------------------------------

GOLDEN = [
    ("", "1:1: is empty; start from config/switchyard.yaml"),
    ("# only a comment", "1:1: is empty; start from config/switchyard.yaml"),
    ("- 1", "1:1: must be a mapping (name: value) at the top"),
    ("hello", "1:1: must be a mapping (name: value) at the top"),
    ("a: [", "1:5: not valid YAML: did not find expected node content"),
    ("a: b: c", "1:5: not valid YAML: mapping values are not allowed in this context"),
    ("---\n{}\n---\n{}", "3:1: a second YAML document starts here; only one is read"),
    ("data_dir: x\ndata_dir: y", '2:1: "data_dir" stands here twice, first on line 1'),
    (
        "server:\n  log: {level: on}",
        "2:16: YAML 1.1 reads on as a bool and 1.2 as text: write true or false, or quote it",
    ),
    (
        "server: {limits: {body_seconds: 1:30}}",
        "1:33: YAML 1.1 reads 1:30 as a number in base 60: write the seconds, or quote it",
    ),
    (
        "server: {workers: 010}",
        "1:19: 010 is octal in YAML 1.1 and decimal in 1.2: drop the leading zero, or quote it",
    ),
    ("server: {workers: 0o10}", "1:19: 0o10 is not a number everywhere: write it in decimal, or quote it"),
    ("server: {workers: 1_0}", "1:19: 1_0 is a number only in YAML 1.1: drop the underscores, or quote it"),
    ("server: {limits: {body_seconds: .inf}}", "1:33: .inf is not a usable number"),
    ("server: {limits: {body_seconds: 1e999}}", "1:33: 1e999 is too large a number"),
    ("models: {1: {targets: [a/b]}}", '1:10: a key must be text: quote it, as in "1"'),
    ("models: {? [a] : 1}", "1:12: a key must be text"),
    ("x: &x {a: 1}\ny: {<<: *x}", "2:5: merge keys (<<) are not read here: write the settings out"),
    ("data_dir: !!str x", "1:11: tags are not read here: tag:yaml.org,2002:str"),
    ("data_dir: &a [*a]", "1:15: alias *a stands inside its own anchor: a cycle"),
    ("data_dir: *a", "1:11: alias *a names no anchor"),
    ("data_dir: ${NOPE}", "1:11: NOPE is not set and has no default: set it, or write ${NOPE:-}"),
    ('data_dir: "${NOPE"', "1:11: ${NOPE must be closed: write ${NOPE} or ${NOPE:-default}"),
    ('data_dir: "${NOPE:?no}"', "1:11: ${NOPE must be closed: write ${NOPE} or ${NOPE:-default}"),
    ('data_dir: "${NOPE:-x"', "1:11: a default is not closed: a } is missing"),
    ('data_dir: "${1}"', "1:11: after ${ comes the name of a variable, as in ${NAME} or ${NAME:-default}"),
    ("servr: {}", '1:1: unknown setting "servr" at the top; did you mean "server"?'),
    ("server: {lisen: []}", '1:10: unknown setting "lisen" in server; did you mean "listen"?'),
    (
        "server: {listen: [{hots: 127.0.0.1}]}",
        '1:20: unknown setting "hots" in server.listen[0]; did you mean "host"?',
    ),
    ("redis: {pasword: x}", '1:9: unknown setting "pasword" in redis; known: url'),
    ("server: {listen: [{port: 70000}]}", "1:26: server.listen[0].port must be at most 65535, not 70000"),
    (
        'server: {listen: [{port: "80"}]}',
        '1:26: server.listen[0].port must be a whole number, not "80" (in quotes it is text)',
    ),
    (
        'server: {listen: [{port: "${PORT:-http}"}]}',
        '1:26: server.listen[0].port must be a whole number, not "http" (from PORT)',
    ),
    ("server: {listen: [{port: true}]}", "1:26: server.listen[0].port must be a whole number, not true"),
    ("server: {listen: []}", "1:18: server.listen must hold at least 1 entry"),
    ("server: {listen: 8080}", "1:18: server.listen must be a list, not 8080"),
    ("server: 8080", "1:9: server must be a mapping (name: value), not 8080"),
    (
        "server: {log: {level: inof}}",
        "1:23: server.log.level must be 'debug', 'info', 'warning' or 'error', not \"inof\"; did you mean \"info\"?",
    ),
    ("server: {limits: {body_seconds: 0}}", "1:33: server.limits.body_seconds must be more than 0, not 0"),
    (
        "server: {listen: [{port: 80}, {port: 80}]}",
        "1:31: server.listen[1] listens on 127.0.0.1:80, as server.listen[0] does",
    ),
    (
        "server: {listen: [{host: 0.0.0.0, port: 80, anonymous: guest}]}",
        "1:56: server.listen[0].anonymous serves callers without a key, and other machines can reach 0.0.0.0: "
        "listen on 127.0.0.1, or write allow_remote: true beside it",
    ),
    (
        "server: {metrics: {listen: {host: 0.0.0.0}}}",
        "1:28: server.metrics.listen shows the metrics without a token, and other machines can reach 0.0.0.0: set "
        "server.metrics.token, listen on 127.0.0.1, or write allow_remote: true beside it",
    ),
    (
        "server: {listen: [{port: 80}], metrics: {listen: {port: 80}}}",
        "1:50: server.metrics.listen listens on 127.0.0.1:80, as server.listen[0] does",
    ),
    (
        "server: {metrics: {token: short-token}}",
        "1:27: server.metrics.token is too short: give it at least 16 characters",
    ),
    (
        'server: {metrics: {token: "sixteen letters \\n and more"}}',
        "1:27: server.metrics.token must be one word of ASCII text",
    ),
    (
        "server: {metrics: {token: sixteen-letters-é}}",
        "1:27: server.metrics.token must be one word of ASCII text",
    ),
    ("server: {metrics: {token: file:here}}", "1:27: server.metrics.token must name an absolute path after file:"),
    (
        'providers: {a: {vendor: ollama, base_url: "http://user:pw@h/"}}',
        "1:43: providers.a.base_url must not hold a user or password: use api_key or headers",
    ),
    (
        'providers: {a: {vendor: ollama, base_url: "http://127.0.0.1:99999"}}',
        "1:43: providers.a.base_url has a port that is not a number from 1 to 65535",
    ),
    ("providers: {a: {}}", "1:16: providers.a.vendor is missing"),
    ("providers: {a: {vendor: opena}}", '1:25: providers.a.vendor: unknown vendor "opena"; did you mean "openai"?'),
    ('providers: {"a/b": {vendor: kimi}}', "1:13: the name a/b may hold only letters, digits and . _ -"),
    (
        "providers: {a: {vendor: kimi, timeouts: {conect: 1}}}",
        '1:42: unknown setting "conect" in providers.a.timeouts; did you mean "connect"?',
    ),
    (
        "providers: {a: {vendor: openai-compatible}}",
        "1:16: providers.a.base_url is missing: vendor openai-compatible has no address of its own",
    ),
    (
        "providers: {a: {vendor: litellm}}",
        "1:16: providers.a.litellm_provider is missing: for example bedrock, azure or anthropic",
    ),
    (
        "providers: {a: {vendor: kimi, base_url: api.example.com}}",
        "1:41: providers.a.base_url must be a URL such as https://api.example.com/v1",
    ),
    (
        "providers: {a: {vendor: kimi, base_url: 'https://u:p@h/v1'}}",
        "1:41: providers.a.base_url must not hold a user or password: use api_key or headers",
    ),
    (
        "providers: {a: {vendor: kimi, models: all}}",
        '1:39: providers.a.models must be discover, or a list of model names such as [gpt-4o, "o3"]',
    ),
    (
        "providers: {a: {vendor: kimi, api_key: file:/nope/x}}",
        "1:40: providers.a.api_key cannot read /nope/x: No such file or directory",
    ),
    (
        'providers: {a: {vendor: kimi, headers: {x: "a\\nb"}}}',
        "1:44: providers.a.headers.x must be one line of Latin-1 text",
    ),
    (
        "providers: {local: {vendor: ollama}}\nmodels: {m: {targets: [loca/x]}}",
        '2:24: models.m.targets[0]: unknown provider "loca"; did you mean "local"?',
    ),
    (
        "providers: {local: {vendor: ollama}}\nmodels: {m: {targets: [{to: local/}]}}",
        '2:29: models.m.targets[0].to: "local/" lacks the model after the slash',
    ),
    (
        "providers: {local: {vendor: ollama}}\nmodels: {m: {targets: [local/a]}, n: {targets: [m]}}",
        '2:49: models.n.targets[0]: "m" must be written provider/model (a model name can stand in fallback only)',
    ),
    (
        "providers: {local: {vendor: ollama}}\nmodels: {m: {targets: [local/*]}}",
        '2:24: models.m.targets[0]: "*" needs a model name with a "*" to take its text from, and "m" has none',
    ),
    (
        "providers: {local: {vendor: ollama}}\nmodels: {m: {targets: [local/a], capabilities: {visoin: true}}}",
        '2:49: unknown setting "visoin" in models.m.capabilities; did you mean "vision"?',
    ),
    ("models: {m: {targets: []}}", "1:23: models.m.targets must hold at least 1 entry"),
    (
        "providers: {local: {vendor: ollama}}\nmodels: {llama: {targets: [local/a]}}\nfallback: [lama]",
        '3:12: fallback[0]: "lama" is neither a name of models nor provider/model; did you mean "llama"?',
    ),
    (
        "providers: {local: {vendor: ollama}}\nfallback: [locl/x]",
        '2:12: fallback[0]: unknown provider "locl"; did you mean "local"?',
    ),
    (
        "providers: {p: {vendor: ollama}}\nmodels:\n  a: {targets: [p/a], fallback: [b]}\n"
        "  b: {targets: [p/b], fallback: [c]}\n  c: {targets: [p/c], fallback: [a]}",
        "5:34: models.c.fallback[0]: fallback runs in a circle: a -> b -> c -> a",
    ),
    (
        'providers: {p: {vendor: ollama}}\nmodels:\n  "x-*": {targets: [p/*], fallback: [x-1]}',
        '3:38: models."x-*".fallback[0]: fallback runs in a circle: x-* -> x-*',
    ),
]


@pytest.mark.parametrize(("text", "said"), GOLDEN, ids=[said for _, said in GOLDEN])
def test_one_problem(tmp_path: Path, text: str, said: str) -> None:
    assert said in problems(tmp_path, text)


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        "server: {workers: zero, lisen: 1}\n"
        "providers:\n"
        "  a: {vendor: opena}\n"
        "  local: {vendor: ollama, timeouts: {idle: -1}}\n"
        "models:\n"
        "  m: {targets: [b/x, local/y]}\n"
        "fallback: [nope]\n"
    )
    assert [line.partition(": ")[0] for line in problems(tmp_path, text)] == [
        "1:19", "1:25", "3:15", "4:44", "6:17", "7:12",
    ]  # fmt: skip


def test_a_wrong_row_does_not_make_its_name_unknown(tmp_path: Path) -> None:
    found = problems(tmp_path, "providers: {p: {vendor: kimi, queue: x}}\nmodels: {m: {targets: [p/a]}}")
    assert len(found) == 1


# -- files that are no config -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: \x00", "1:1: is a binary file, not YAML text"),
        (b"ok: 1\nb: \xff\xfe", "2:1: is not UTF-8 text"),
        (b"#" * (1024 * 1024 + 1), "1:1: is larger than 1024 KiB, which no config needs"),
        (b"a: \x07", "1:1: not valid YAML: control characters are not allowed"),
        (b"[" * 5000, "1:25: nested deeper than 24 levels"),
    ],
    ids=["binary", "latin-1", "too large", "control character", "deep"],
)
def test_content_that_is_no_config(tmp_path: Path, content: bytes, said: str) -> None:
    assert problems(tmp_path, content) == [said]


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "no.yaml", "there is no such file"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigErrors, match=said):
            load_config(path, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("{}")
    file.chmod(0)
    with pytest.raises(ConfigErrors, match="cannot be read: Permission denied"):
        load_config(file, {})


def test_a_device_is_not_read() -> None:
    with pytest.raises(ConfigErrors, match="is not a regular file"):
        load_config(Path("/dev/zero"), {})


def test_aliases_cannot_explode(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert (
        "the file holds more than 100000 values once its aliases are expanded"
        in problems(tmp_path, "\n".join(lines))[0].partition(": ")[2]
    )


def test_aliases_cannot_nest_deeper_than_text_may(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 600))]
    assert "nested deeper than 24 levels once its aliases are expanded" in problems(tmp_path, "\n".join(lines))[0]


# -- values -------------------------------------------------------------------------------------------------------


def test_references(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
server:
  workers: "${WORKERS}"
  listen: [{port: "${PORT:-9000}", allow_remote: "${REMOTE:-no}"}]
  limits: {body_seconds: "${SECONDS:-1.5}"}
providers:
  a: {vendor: kimi, api_key: "${KEY_A:-${KEY_B:-none}}", proxy: "${PROXY:-}", max_concurrency: "${MAX:-}"}
data_dir: "$$HOME/$x/${NAME}"
""",
        {"WORKERS": "4", "KEY_A": "", "KEY_B": "b-key", "NAME": "a: [b"},
    )
    assert config.server.workers == 4
    assert config.server.listen[0].port == 9000
    assert config.server.listen[0].allow_remote is False
    assert config.server.limits.body_seconds == 1.5
    assert config.providers["a"].api_key == SecretStr("b-key")
    assert config.providers["a"].proxy is None
    assert config.providers["a"].max_concurrency is None
    assert config.data_dir == "$HOME/$x/a: [b", "a value is text, whatever it holds"
    assert config.variables("providers", "a", "api_key") == ("KEY_A", "KEY_B")


def test_a_reference_in_an_unused_default_need_not_be_set(tmp_path: Path) -> None:
    assert load(tmp_path, "data_dir: ${A:-${B}}", {"A": "x"}).data_dir == "x"
    assert problems(tmp_path, "data_dir: ${A:-${B}}")


def test_secrets_from_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-from-file\n")
    (tmp_path / "big").write_bytes(b"x" * 70_000)
    config = load(tmp_path, f"providers: {{a: {{vendor: kimi, api_key: 'file:{tmp_path}/key'}}}}")
    key = config.providers["a"].api_key
    assert key is not None
    assert key.get_secret_value() == "sk-from-file"
    said = problems(tmp_path, f"providers: {{a: {{vendor: kimi, api_key: 'file:{tmp_path}/big'}}}}")
    assert "is too large for a secret" in said[0]
    assert "must name an absolute path" in problems(tmp_path, "redis: {url: 'file:key'}")[0]


def test_the_admin_token_comes_from_its_variable_too(tmp_path: Path) -> None:
    env = {"SWITCHYARD_ADMIN_TOKEN": "from-the-environment"}
    assert load(tmp_path, "data_dir: x", env).server.admin_token == SecretStr("from-the-environment")
    own = load(tmp_path, "server: {admin_token: '${TOKEN}'}", {**env, "TOKEN": "own"})
    assert own.server.admin_token == SecretStr("own")


def test_a_config_does_not_change_and_does_not_tell(tmp_path: Path) -> None:
    config = load(tmp_path, "providers: {a: {vendor: kimi, api_key: '${K}'}}", {"K": "sk-very-secret"})
    with pytest.raises(ValidationError):
        config.data_dir = "y"
    assert "sk-very-secret" not in repr(config) + str(config.model_dump(mode="json"))


def test_no_problem_repeats_a_secret(tmp_path: Path) -> None:
    text = """
redis: {url: [sk-very-secret]}
providers:
  a: {vendor: kimi, api_key: [sk-very-secret], proxy: {x: sk-very-secret}, headers: sk-very-secret}
  b: {vendor: kimi, api_key: 5550123, headers: {authorization: 5550123}}
"""
    said = "\n".join(problems(tmp_path, text))
    assert "redis.url" in said
    assert "very-secret" not in said
    assert "5550123" not in said


def test_warnings(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
server: {listen: [{host: 0.0.0.0, port: 1, anonymous: g, allow_remote: true}], metrics: {token: 0123456789abcdefg}}
redis: {url: "redis://user:password@host"}
providers:
  a: {vendor: kimi, api_key: sk-0123456789abcdef}
  b: {vendor: kimi, api_key: "${KEY:-}", headers: {Authorization: Bearer 0123456789}}
  c: {vendor: openai-compatible, base_url: "http://127.0.0.1:1/v1", api_key: none, local: true}
  d: {vendor: litellm, litellm_provider: bedrock, proxy: "http://127.0.0.1:3128", ca_bundle: "${EMPTY:-}"}
fallback: [c/x, a/y]
""",
    )
    assert [f"{warning.line}: {warning.message}" for warning in config.warnings] == [
        "2: server.listen[0] serves callers without a key to other machines",
        "2: server.metrics.token holds a secret in plain text: write ${NAME} or file:/path instead",
        "3: redis.url holds a password in plain text: write ${NAME} or file:/path instead",
        "5: providers.a.api_key holds a secret in plain text: write ${NAME} or file:/path instead",
        "6: providers.b.headers.Authorization holds a secret in plain text: write ${NAME} or file:/path instead",
        "8: providers.d.proxy has no effect with vendor litellm: its library reads HTTPS_PROXY and SSL_CERT_FILE of the"
        " environment",
        '9: fallback[1]: the chain ends at "a/y", which is not local',
    ]


def test_plain_scalars_are_what_they_look_like(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "providers: {p: {vendor: ollama, options: {date: 2024-01-01, version: v1, tag: 7b, colon: a:b, n: 1.5, y: y}}}",
    )
    assert config.providers["p"].options == {
        "date": "2024-01-01", "version": "v1", "tag": "7b", "colon": "a:b", "n": 1.5, "y": "y",
    }  # fmt: skip


def test_a_byte_order_mark_is_fine(tmp_path: Path) -> None:
    assert load(tmp_path, b"\xef\xbb\xbfdata_dir: x\r\n").data_dir == "x"


# -- anything at all ----------------------------------------------------------------------------------------------

PIECES = [
    "server", "listen", "host", "port", "providers", "models", "targets", "to", "fallback", "vendor", "api_key", "kimi",
    "local/x", "m-*", "*a", "&a ", "${A}", "${A:-", "}", "$$", "file:/", ": ", "- ", "\n", "\n  ", "{", "[", "]", ",",
    "'", '"', "|\n", ">\n", "? ", "!!int ", "<<: ", "1:30", "on", "0x1", "-1", "1e9", "null", "#", "---\n", "\t", "\0",
    "\u2028", "😀", "\ud7ff",
]  # fmt: skip


def check_survives(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "any.yaml"
    file.write_bytes(data)
    try:
        load_config(file, {"A": "1"})
    except ConfigErrors as errors:
        found = errors.problems
    else:
        return
    assert found
    ends = (b"\n", b"\r", b"\xc2\x85", "\u2028".encode(), "\u2029".encode())
    lines = sum(map(data.count, ends)) + 2
    for problem in found:
        assert 1 <= problem.line <= lines
        assert problem.column >= 1
        assert "\n" not in problem.message


COMMON = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@COMMON
@given(st.binary(max_size=200))
@example(b"\x85")
def test_any_bytes_load_or_are_refused(tmp_path: Path, data: bytes) -> None:
    check_survives(tmp_path, data)


@COMMON
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
@example(
    "models: {m: {targets: [{to: [x]}], fallback: {a: b}}}\nfallback: {a: b}\nproviders: [x]\nserver: {listen: [1]}"
)
@example("providers: {p: {vendor: [x], base_url: 3, headers: [1], ca_bundle: '/'}}\nredis: x")
@example("server: [x]\nmodels: {m: 1, n: {targets: 3}, o: {fallback: [1, [2]]}}")
@example("providers: {p: {vendor: kimi, base_url: 'http://[x', models: [1, {}]}}")
def test_any_text_loads_or_is_refused(tmp_path: Path, text: str) -> None:
    check_survives(tmp_path, text.encode())


NAMES = st.sampled_from([
    "server", "providers", "models", "fallback", "p", "m", "vendor", "api_key", "targets", "to", "listen", "port",
    "capabilities", "timeouts", "headers", "base_url", "local", "options", "redis", "url", "limits", "log", "level",
])  # fmt: skip
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | NAMES | st.just("p/x"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=25,
)


@COMMON
@given(st.dictionaries(NAMES, TREES, max_size=5))
def test_any_tree_loads_or_is_refused(tmp_path: Path, tree: dict[str, object]) -> None:
    import yaml

    check_survives(tmp_path, yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace"))
