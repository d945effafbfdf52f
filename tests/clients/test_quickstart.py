"""The quick start after its set-up: `switchyard serve` with the default config, and the line it says to paste."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.simulators.client import Client
from tests.simulators.ports import refused_port
from tests.simulators.programs import need
from tests.simulators.router import ROOT, RouterProcess
from tests.simulators.waiting import until

COMMAND = Path(sys.executable).with_name("switchyard")


def process(directory: Path) -> RouterProcess:
    """Not started yet: the command as installed, in a directory without a config, so with the default one. Only the
    port is asked for, and no Ollama: tests share the machine. It tells what it imports, on standard error."""
    env = {"PYTHONPROFILEIMPORTTIME": "1", "OLLAMA_HOST": f"http://127.0.0.1:{refused_port()}"}
    router = RouterProcess(directory, {}, env)
    router.config_path.unlink()
    router.cwd = directory
    router.command = [str(COMMAND), "serve", "--port", str(router.port)]
    return router


def test_quick_start(tmp_path: Path) -> None:
    assert not (ROOT / "router" / "default").exists(), "a checkout has one default config"
    router = process(tmp_path)
    began = time.monotonic()
    with router:
        seconds = time.monotonic() - began
        print(f"start to ready: {seconds:.2f} s")
        assert seconds < 60  # 2 on an idle machine
        text = "\n".join(router.out)
        assert f"http://127.0.0.1:{router.port}/v1" in text
        assert re.fullmatch(r"sk-\S{20,}", router.key)
        assert router.admin_token
        assert "off: openai (OPENAI_API_KEY is not set)" in text
        assert (tmp_path / "data").is_dir()

        line = router.wait_line("  curl ", router.out)
        assert router.key in line
        need("curl")
        pasted = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False)
        assert pasted.returncode == 0, pasted.stderr
        answer = json.loads(pasted.stdout)
        assert answer["choices"][0]["message"]["content"].strip()
        assert answer["usage"]["completion_tokens"] > 3
        (asked,) = re.findall(r'"model": "([^"]+)"', line)
        logged = router.log_of(asked)
        assert logged["answered_by"] == "demo/gemma-3-270m"
        assert not [word for word in router.err if router.key in word]
        imported = {line.rpartition("|")[2].strip() for line in router.err if line.startswith("import time:")}
        assert "router.runtime" in imported
        assert not [name for name in imported if name.partition(".")[0] == "litellm"]
        family = router.family()
    assert router.code == 0
    until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in family),
        what="the store and the model end with the router",
    )

    again = process(tmp_path)
    with again:
        assert again.key == ""
        assert again.admin_token == ""
        assert not [word for word in again.out if router.key in word]
        told = Client(again.port, router.key).request("GET", "/v1/models")
        assert told.status == 200, told
        assert "gemma-3-270m" in [model["id"] for model in told.json["data"]]
