"""The demo model's own process: `python -m router.local_process`, started and watched by `router.local_model`, never
by hand.

Rules: it alone imports llama.cpp, so its memory and its crashes are not the router's. It speaks to its parent in JSON
lines on standard output (`state`, `progress`, `detail`, `url`); everything llama.cpp prints goes to standard error.
It ends when its parent does: by the kernel's signal on Linux, and everywhere when standard input reaches its end. It
listens on a loopback port that the kernel picks and asks for the key in its environment. It gets no other secret.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from router import local_prompt, local_weights

KEY_VARIABLE = "SWITCHYARD_DEMO_KEY"
FAILED = 3
"""Exit status after a failure that was reported on standard output."""

_PR_SET_PDEATHSIG = 1
_PREPARING_SHARE = 0.6
"""Part of the progress bar that preparing the weights takes; loading takes the rest."""


def main() -> int:
    options = _options()
    report = _Report(os.dup(1))
    os.dup2(2, 1)  # llama.cpp's own prints must not get between our lines
    key = os.environ.pop(KEY_VARIABLE)
    _tie_to_parent(options.parent)
    _be_modest()
    try:
        report.say("preparing", 0.0, "looking at the weights")
        path = local_weights.ensure(options.folder, local_weights.packaged(), report.preparing)
    except local_weights.WeightsError as error:
        report.say("failed", 0.0, str(error))
        return FAILED
    report.say("loading", _PREPARING_SHARE, "loading the model into memory")
    server = _serve(path, key, options)
    report.say("ready", 1.0, "ready", url=server.listening_address)
    _warm(server)
    threading.Event().wait()  # llama.cpp serves from its own threads; the process ends by signal or with its parent
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the joined weights are kept")
    parser.add_argument("--parent", type=int, required=True, help="process id of the router")
    parser.add_argument("--port", type=int, default=0, help="port of an earlier start, taken again if free")
    parser.add_argument("--slots", type=int, default=2, help="answers at the same time")
    parser.add_argument("--context", type=int, default=4096, help="tokens of prompt and answer, per slot")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


class _Report:
    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._last = -1.0

    def say(self, state: str, progress: float, detail: str, **more: object) -> None:
        line = json.dumps({"state": state, "progress": round(progress, 3), "detail": detail, **more}) + "\n"
        with contextlib.suppress(BrokenPipeError):  # the parent is gone; so shall we be in a moment
            os.write(self._handle, line.encode())

    def preparing(self, share: float, detail: str) -> None:
        if share == 0.0 or share - self._last >= 0.02 or share == 1.0:  # at most 50 lines
            self._last = share
            self.say("preparing", share * _PREPARING_SHARE, detail)


def _tie_to_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    threading.Thread(target=_until_stdin_ends, daemon=True).start()


def _until_stdin_ends() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


def _be_modest() -> None:
    """Under pressure this process gives way to the router: less CPU, first to go when memory ends, no core files with
    prompts."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # not allowed everywhere, and only a courtesy
        os.nice(5)
        Path("/proc/self/oom_score_adj").write_text("500")


def _serve(path: Path, key: str, options: argparse.Namespace) -> Any:
    """A running llama.cpp server. The call returns when the model is loaded and its port listens."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.model_alias = {local_prompt.MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = options.port
    params.api_keys = [key]
    params.cors_origins = "null"  # the default lets every web page read /health and /v1/models
    params.cors_credentials = False
    params.ui = False
    params.offline = True
    params.endpoint_slots = True  # answered by the inference loop: the parent's sign of life
    params.n_parallel = options.slots
    params.n_ctx = options.context * options.slots
    params.n_batch = 512  # keeps one step of the loop short, so that other slots and the sign of life get their turn
    params.swa_full = True  # a sliding window alone would forget the shared prefix: 230 tokens read anew at each call
    params.cache_ram_mib = 64
    params.n_threads_http = 32  # each waiting call holds one; the sign of life needs one too
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads
    params.chat_template = local_prompt.template()
    params.verbosity = 1  # errors
    for name, value in local_prompt.SAMPLING.items():
        setattr(params.sampling, name, value)
    params.n_predict = local_prompt.MOST_TOKENS
    params.antiprompt = list(local_prompt.STOP)
    return xllamacpp.Server(params)


def _warm(server: Any) -> None:
    """Read the examples of both languages once, so that the first caller does not wait for it."""
    for text in ("Hello", "你好"):
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
        server.handle_chat_completions(body)


if __name__ == "__main__":
    sys.exit(main())
