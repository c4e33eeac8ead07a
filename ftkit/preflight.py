"""Everything that can be known before anything is spent: data, audit, the backend's own checks, estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .audit import audit_notes, audit_warnings
from .data import load_task
from .errors import FtkitError, Problem, RecipeError
from .recipe import PluginRef, Recipe
from .records import Finding, Rendered, Task


@dataclass(frozen=True)
class Preflight:
    """What was found. `task` is None where the data could not be read; `findings` then says why."""

    task: Task | None
    audit: dict[str, Any]
    findings: list[Finding]
    estimate: dict[str, Any] = field(default_factory=dict)
    control_estimates: list[dict[str, Any]] = field(default_factory=list)  # each with its `control`'s name

    @property
    def estimates(self) -> list[dict[str, Any]]:
        """All that this recipe is estimated to cost: its own backend, then its controls."""
        return [self.estimate, *self.control_estimates]

    @property
    def errors(self) -> list[Finding]:
        return [f for f in self.findings if f.level == "error"]

    @property
    def warnings(self) -> list[str]:
        return [f.message for f in self.findings if f.level == "warning"]

    def raise_errors(self, recipe: Recipe) -> None:
        """Raise RecipeError with every error finding, at the place of its key in the recipe."""
        if self.errors:
            raise RecipeError(problems_of(recipe, self.errors))


def problems_of(recipe: Recipe, findings: Sequence[Finding]) -> list[Problem]:
    """Return findings with the file, line and column of the recipe key that they speak of."""
    places = [recipe.position(f.key) if f.key else (None, None, None) for f in findings]
    return [Problem(f.message, *place, f.key, f.hint, f.level) for f, place in zip(findings, places, strict=True)]


def preflight(recipe: Recipe) -> Preflight:
    """Read the data, audit it, and ask every plugin of the recipe whether it could work. Spends nothing."""
    findings: list[Finding] = [Finding("note", note) for note in recipe.notes]
    task: Task | None = None
    report: dict[str, Any] = {}
    try:
        task, report = load_task(recipe)
    except RecipeError as error:
        findings += [Finding("error", p.message, p.hint, p.key) for p in error.problems]
    except FtkitError as error:
        key = error.message.split(":")[0]
        findings.append(
            Finding("error", error.message, error.hint, key if key.startswith("dataset.") else "dataset.path")
        )
    if report:
        findings += [Finding("warning", text) for text in audit_warnings(report)]
        findings += [Finding("note", text) for text in audit_notes(report)]
    if report.get("dropped_from_train"):
        findings.append(Finding("note", report["notes"][-1], key="dataset.drop_leaked"))
    for ref in (recipe.backend, *recipe.controls):
        findings += _checked(ref, task, "backend.plugin" if ref is recipe.backend else "controls")
    for ref in recipe.evaluators:
        if not isinstance(getattr(ref.make(), "primary", None), str):
            findings.append(Finding("error", f"evaluator {ref.name!r} does not say which metric is its `primary`"))
    if task is not None:
        findings += _audit_tokens(recipe.backend, task, report, [f for f in findings if f.level == "error"])
    controls = [{"control": ref.name, **_estimated(ref, task, True)} for ref in recipe.controls]
    return Preflight(task, report, findings, _estimated(recipe.backend, task, False), controls)


def _estimated(ref: PluginRef, task: Task | None, control: bool) -> dict[str, Any]:
    backend = ref.make()
    backend.control = control
    try:
        return dict(backend.estimate(task))
    except Exception as error:  # an estimate that fails must not stop a run
        return {"not_estimated": f"{type(error).__name__}: {error}"}


def _checked(ref: PluginRef, task: Task | None, key: str) -> list[Finding]:
    try:
        backend = ref.make()
        backend.control = key == "controls"
        return list(backend.check(task, None))
    except FtkitError as error:
        return [Finding("error", error.message, error.hint, key)]
    except Exception as error:  # a stranger's plugin: its defect is a finding, not a crash
        return [
            Finding(
                "error",
                f"{ref.kind} {ref.name!r}: check() raised {type(error).__name__}: {error}",
                key=key,
            )
        ]


def _audit_tokens(ref: PluginRef, task: Task, report: dict[str, Any], errors: Sequence[Finding]) -> list[Finding]:
    """Add token lengths to the audit, or why they could not be had; `errors`: what is known to stop the run already."""
    try:
        report["tokens"] = token_lengths(ref.make(), task)
        return _token_findings(report["tokens"], getattr(ref.options, "sequence_len", None))
    except FtkitError as error:
        why, finding = error.message, Finding("error", error.message, error.hint, "backend")
    except Exception as error:  # a stranger's plugin
        why = f"{ref.kind} {ref.name!r}: render() raised {type(error).__name__}: {error}"
        finding = Finding("error", why, key="backend.plugin")
    report["tokens"] = {"not_checked": why}
    if not errors:
        return [finding]
    # Whatever keeps the tokens from being shown keeps the model from being trained: it is told once.
    known = {((e.key or "").split(".")[0], e.message) for e in errors}
    told = "see the error above" if ("backend", why) in known else why
    return [Finding("note", f"not checked: token lengths ({told})")]


def token_lengths(backend: Any, task: Task) -> dict[str, Any]:
    """Return per split median, p95 and max length in tokens, and how many examples lose tokens to the limit.

    Every example is rendered, as it would be learned: prompt and first target. `faults` are the reasons why
    examples must not be learned, each with how many have it and the id of the first. {"not_checked": why} where
    the backend shows no tokens.
    """
    import numpy as np

    lengths: dict[str, Any] = {}
    try:
        for split, examples in task.splits.items():
            sizes: list[int] = []
            lose_prompt = lose_target = learn_nothing = 0
            faults: dict[str, dict[str, Any]] = {}
            for rendered in backend.render(examples):
                prompt, target = rendered.truncated
                sizes.append(len(rendered.ids) + prompt + target)
                lose_prompt += prompt > 0
                lose_target += target > 0
                learn_nothing += not any(rendered.learned)
                fault = _fault(rendered, split)
                if fault:
                    first = {**fault.to_dict(), "examples": 0, "first": rendered.example_id}
                    faults.setdefault(fault.message, first)["examples"] += 1
            if sizes:
                lengths[split] = {
                    "rendered": len(sizes),
                    "median": float(np.median(sizes)),
                    "p95": round(float(np.percentile(sizes, 95)), 1),
                    "max": max(sizes),
                    "lose_prompt_tokens": lose_prompt,
                    "lose_target_tokens": lose_target,
                    "learn_nothing": learn_nothing,
                    "faults": list(faults.values()),
                }
    except NotImplementedError as error:
        return {"not_checked": str(error)}
    return lengths


def _fault(rendered: Rendered, split: str) -> Finding | None:
    """Return why this example stops the run; rows that are not learned from need only a prompt."""
    if split != "train" and rendered.ids:
        return None
    if rendered.finding is not None and rendered.finding.level == "error":
        return rendered.finding
    if any(rendered.learned):
        return None
    return Finding("error", "no token of this example is learned", "look at one with `ftkit preview`")


def _token_findings(lengths: dict[str, Any], limit: int | None) -> list[Finding]:
    """Return what the lengths mean where a recipe has this `limit` (`backend.sequence_len`)."""
    if "not_checked" in lengths:
        return [Finding("note", f"not checked: token lengths ({lengths['not_checked']})")]
    findings = []
    for split, facts in lengths.items():
        for fault in facts["faults"]:
            more = f" (and {fault['examples'] - 1} more of {facts['rendered']})" if fault["examples"] > 1 else ""
            message = f"{split}: example {fault['first']!r}{more}: {fault['message']}"
            findings.append(Finding("error", message, fault["hint"], fault["key"]))
        now = f" (now {limit})" if limit is not None else ""
        hint = f"raise backend.sequence_len{now}: 95 % of the {split} rows are below {facts['p95']:.0f} tokens"
        if split == "test":  # its answers are never learned, and generation has the whole context
            if facts["lose_prompt_tokens"]:
                message = (
                    f"test: prompts longer than what training reads (the sequence limit): {facts['lose_prompt_tokens']} of "
                    f"{facts['rendered']}; what is measured is the whole prompt, as far as the model's context reaches"
                )
                findings.append(Finding("warning", message, hint, "backend.sequence_len"))
            continue
        for part in ("prompt", "target"):
            count = facts[f"lose_{part}_tokens"]
            if count:
                message = f"{split}: {count} of {facts['rendered']} examples lose {part} tokens to the sequence limit"
                findings.append(Finding("warning", message, hint, "backend.sequence_len"))
    return findings
