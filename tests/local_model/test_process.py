"""The process: starts, dies, hangs, is orphaned. Real processes, real signals."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from providers.errors import Unavailable
from router import local_weights
from router.local_model import LocalModel, ModelState, Pace
from tests.local_model.ask import chat

QUICK = Pace(look=0.2, retry_first=0.05, follow=0.05)
"""A step of the inference loop may take as long as in a router that serves: right after its start the process reads the
examples, and other tests share the machine."""
BRISK = replace(QUICK, answer=1.0)
"""For processes that will not answer."""


@asynccontextmanager
async def running(data: Path, pace: Pace = QUICK, **more: object) -> AsyncIterator[LocalModel]:
    model = LocalModel(data, context=512, slots=1, pace=pace, **more)  # type: ignore[arg-type]  # on_state only
    await model.start()
    try:
        yield model
    finally:
        await model.stop()


async def until(fact: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not fact():  # noqa: ASYNC110 - signals and files have no event
            await asyncio.sleep(0.02)


def lives(pid: int) -> bool:
    """Running, and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_progress_is_told_until_ready(tmp_path: Path) -> None:
    seen: list[ModelState] = []
    async with running(tmp_path, on_state=seen.append) as model:
        assert model.base_url is None
        assert await model.wait_ready(120), model.state
        assert await model.wait() == (f"{model.base_url}", model.api_key)
        assert "xllamacpp" not in sys.modules
    order = [state.state for state in seen]
    assert [state for state, before in zip(order, [None, *order], strict=False) if state != before] == [
        "preparing",
        "loading",
        "ready",
        "off",
    ]
    shares = [state.progress for state in seen if state.state in ("preparing", "loading")]
    assert shares == sorted(shares)
    assert len(shares) > 10


async def test_a_killed_process_is_replaced(model_data: Path) -> None:
    async with running(model_data) as model:
        assert await model.wait_ready(120), model.state
        first = model.pid
        assert first
        os.kill(first, signal.SIGKILL)
        await until(lambda: model.pid not in (None, first))
        assert await model.wait_ready(60), model.state
        assert await chat(model, "Hello", max_tokens=2)
        assert not lives(first)
        last = model.pid
    assert last
    assert not Path(f"/proc/{last}").exists()


async def test_a_process_that_hangs_is_replaced(model_data: Path) -> None:
    async with running(model_data, BRISK) as model:
        assert await model.wait_ready(120), model.state
        first = model.pid
        assert first
        os.kill(first, signal.SIGSTOP)
        await until(lambda: model.starts == 2)
        assert await model.wait_ready(60), model.state
        assert not lives(first)


async def test_missing_signs_of_life_are_enough(model_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not tell that a process is stopped, or when it spins."""
    monkeypatch.setattr("router.local_model._is_stopped", lambda _: False)
    told: list[ModelState] = []
    async with running(model_data, BRISK, on_state=told.append) as model:
        assert await model.wait_ready(120), model.state
        assert model.pid
        os.kill(model.pid, signal.SIGSTOP)
        await until(lambda: model.starts == 2)
        assert [state for state in told if "no sign of life" in state.detail]


async def test_a_busy_process_is_left_alone(model_data: Path) -> None:
    async with running(model_data) as model:
        assert await model.wait_ready(120), model.state
        await asyncio.gather(*(chat(model, f"Tell me about {n}", max_tokens=60, ignore_eos=True) for n in range(3)))
        assert model.starts == 1


ROUTER = """
import asyncio, sys
from pathlib import Path
from router.local_model import LocalModel
async def main():
    model = LocalModel(Path(sys.argv[1]), context=512, slots=1)
    await model.start()
    print(await model.wait_ready(120), model.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_killed_router_leaves_no_process(model_data: Path) -> None:
    router = subprocess.Popen(
        [sys.executable, "-c", ROUTER, str(model_data)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        assert router.stdout
        ready, pid = (await asyncio.to_thread(router.stdout.readline)).split()
        assert ready == "True"
        assert lives(int(pid))
    finally:
        router.kill()
        router.communicate()
    await until(lambda: not lives(int(pid)))


async def test_two_routers_share_one_process_and_one_takes_over(model_data: Path) -> None:
    first, second = LocalModel(model_data, context=512, slots=1, pace=QUICK), LocalModel(model_data, pace=QUICK)
    try:
        await first.start()
        assert await first.wait_ready(120), first.state
        await second.start()
        assert await second.wait_ready(60), second.state
        assert (second.base_url, second.api_key, second.pid) == (first.base_url, first.api_key, None)
        assert (model_data / "demo" / "running.json").stat().st_mode & 0o077 == 0
        await first.stop()
        await until(lambda: second.pid is not None)
        assert await second.wait_ready(60), second.state
        assert await chat(second, "Hello", max_tokens=2)
    finally:
        await first.stop()
        await second.stop()


async def test_without_the_extra_it_is_off_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "xllamacpp" else real(name))
    model = LocalModel(tmp_path)
    await model.start()
    assert model.state.state == "off"
    assert "make setup, or pip install '.[demo]'" in model.state.detail
    assert await model.wait_ready(5) is False
    with pytest.raises(Unavailable, match="not installed"):
        await model.wait()
    await model.stop()


async def test_damaged_weights_are_told_and_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the right size is not enough: it is caught by the pinned checksum and made anew."""
    folder = tmp_path / "demo"
    folder.mkdir()
    with (folder / local_weights.FILE).open("wb") as file:
        file.truncate(local_weights.SIZE)
    async with running(tmp_path) as model:
        assert await model.wait_ready(120), model.state
    assert local_weights.verify(folder) is None


async def test_an_unusable_directory_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("in the way")
    async with running(tmp_path) as model:
        assert await model.wait_ready(60) is False
        assert model.state.state == "failed"
        assert str(tmp_path) in model.state.detail


async def test_stopping_while_it_loads_leaves_nothing(model_data: Path) -> None:
    model = LocalModel(model_data, pace=QUICK)
    await model.start()
    await until(lambda: model.pid is not None)
    pid = model.pid
    assert pid
    async with asyncio.timeout(60):
        await model.stop()
    assert not Path(f"/proc/{pid}").exists()
    with contextlib.suppress(ChildProcessError):
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
