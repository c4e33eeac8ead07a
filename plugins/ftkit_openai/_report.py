"""What the report says of managed runs beside the numbers: the job, its tokens, the estimated and the actual price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftkit.api import MeasuredRun
from ftkit.files import read_json
from ftkit.records import Section
from ftkit.text import dollars

from ._state import state_of


def sections(runs: Sequence[MeasuredRun]) -> list[Section]:
    """Return one table of the managed runs; no section where there is none."""
    managed = [run for run in runs if _is_managed(run)]
    if not managed:
        return []
    header = [
        "run",
        "job",
        "trained tokens",
        "training, estimated",
        "training, actual",
        "answers, estimated",
        "answers, actual",
    ]
    rows = [_row(run) for run in managed]
    as_of = sorted({str(_estimate(run).get("prices_as_of")) for run in managed} - {"None"})
    blocks: list[dict[str, Any]] = [{"kind": "table", "header": header, "rows": rows}]
    if as_of:
        blocks.append({"kind": "text", "text": f"Prices in USD, as of {', '.join(as_of)}. The actual price is computed from the tokens "
                       "that the provider reports; its bill decides (discounts for cached prompts are not counted)."})  # fmt: skip
    return [Section("Managed training: estimated and actual price", tuple(blocks))]


def _is_managed(run: MeasuredRun) -> bool:
    return (
        run.path("lock.json").exists()
        and read_json(run.path("lock.json")).get("model", {}).get("plugin") == "openai-managed"
    )


def _estimate(run: MeasuredRun) -> dict[str, Any]:
    path = run.path("audit.json")
    estimate: dict[str, Any] = (read_json(path) if path.exists() else {}).get("estimate") or {}
    return estimate


def _row(run: MeasuredRun) -> list[str]:
    estimate = _estimate(run)
    end: dict[str, Any] = next((r for r in reversed(run.log_rows()) if r["event"] == "end"), {})
    spent = [
        p.usd for name in run.measured() if run.path(name, "predictions.jsonl").exists() for p in run.predictions(name)
    ]
    known = [usd for usd in spent if usd is not None]
    job = str(end.get("job") or (state_of(run).get("job") or {}).get("id") or "none")
    tokens = end.get("trained_tokens")
    return [
        run.id,
        job,
        f"{tokens:,}" if tokens is not None else "not known",
        _usd(estimate.get("usd_training", estimate.get("usd"))),
        _usd(end.get("usd")),
        _usd(estimate.get("usd_predictions", estimate.get("usd"))),
        _usd(sum(known) if known else None),
    ]


def _usd(value: Any) -> str:
    return "not known" if value is None else dollars(value)
