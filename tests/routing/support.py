"""Snapshots for tests: a config as text, vendors that are nothing but facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from providers.call import Needs
from providers.vendor import Capabilities, ModelFacts, PlainVendor
from router.config import Config
from router.config_check import check_text
from router.health import Block
from router.routing import Plan, Provider, Rights, Snapshot, compile_snapshot, plan

NO_NEEDS, ALL_RIGHTS = Needs(), Rights()
KEYED = {"openai", "gemini", "kimi", "doubao"}


class FactsVendor(PlainVendor):
    """A vendor that knows what a few models can do."""

    def __init__(self, name: str) -> None:
        super().__init__(
            name,
            cast("Any", None),  # no wire: nothing is sent here
            base_url=None if name == "openai-compatible" else f"https://{name}.example/v1",
            key_env=f"{name.upper()}_API_KEY",
            needs_key=name in KEYED,
            local=name in ("ollama", "demo"),
        )

    def capabilities(self, model: str) -> Capabilities:
        if "embed" in model:
            return Capabilities(chat=False, text=False, embeddings=True)
        if model == "tiny":
            return Capabilities(vision=False, tools=False, schema=False, reasoning=False, embeddings=False, context=10)
        return Capabilities()


def config_of(text: str, env: Mapping[str, str] | None = None) -> Config:
    config, origin = check_text(text, "c.yaml", env or {})
    config._origin = origin
    return config


def snapshot_of(
    text: str,
    *,
    env: Mapping[str, str] | None = None,
    discovered: Mapping[str, Sequence[str | ModelFacts]] | None = None,
    **options: Any,
) -> Snapshot:
    found = {
        name: [fact if isinstance(fact, ModelFacts) else ModelFacts(fact) for fact in facts]
        for name, facts in (discovered or {}).items()
    }
    return compile_snapshot(
        config_of(text, env), discovered=found, vendor=lambda name, _options: FactsVendor(name), **options
    )


def healthy(_provider: Provider, _model: str) -> None:
    return None


def plan_of(
    snapshot: Snapshot,
    model: str,
    needs: Needs = NO_NEEDS,
    rights: Rights = ALL_RIGHTS,
    *,
    sick: Mapping[str, Block] | None = None,
    rolls: Sequence[float] = (),
    fallback: bool = True,
) -> Plan:
    """A plan with scripted dice; more rolls than scripted fail the test."""
    dice = iter(rolls)

    def unhealthy(provider: Provider, sent: str) -> Block | None:
        return (sick or {}).get(f"{provider.name}/{sent}")

    return plan(snapshot, model, needs, rights, unhealthy, lambda: next(dice), fallback)


def targets(found: Plan) -> list[str]:
    return [str(attempt.target) for attempt in found.attempts]


def reasons(found: Plan) -> dict[str, str]:
    return {skip.target: skip.reason for skip in found.skipped}
