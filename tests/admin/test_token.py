"""The admin token of the config file is the one that counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.config import load_config
from router.output import Output
from router.runtime import Runtime

OWN, OTHER = "written-in-the-config-file", "set-in-the-environment-only"


@pytest.mark.parametrize(
    ("line", "token"),
    [
        pytest.param(f"server: {{admin_token: {OWN}}}", OWN, id="the file's"),
        pytest.param("server: {}", OTHER, id="the variable's"),
    ],
)
async def test_where_the_admin_token_comes_from(
    line: str, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCHYARD_ADMIN_TOKEN", OTHER)
    file = tmp_path / "switchyard.yaml"
    file.write_text(f"{line}\ndata_dir: {tmp_path / 'data'}\n")
    runtime = Runtime(
        load_config(file, {"SWITCHYARD_ADMIN_TOKEN": OTHER}), config_path=file, log=Output(2, requests=False)
    )
    try:
        await runtime.start({})
        assert [await runtime.keys.is_admin(one) for one in (OWN, OTHER)] == [token == OWN, token == OTHER]
    finally:
        await runtime.stop()
