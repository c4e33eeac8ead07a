"""Make a run directory that can be executed: check all that can be known, confirm the price, write data and lock.

Nothing is spent here, and a directory exists only when everything was right: its run.json is written last.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from ..api import Backend
from ..console import Console
from ..data.audit import audit_notes, audit_warnings, empty_targets
from ..data.task import load_task
from ..directory import RunDirectory, utc_now
from ..errors import FtkitError, InputError, Problem, RecipeError, RunFailed
from ..files import digest, write_atomic, write_json
from ..hub import forget_commits
from ..recipe.load import PluginRef, Recipe
from ..records import Finding, GenerationConfig, LengthLimit, Rendered, RunRecord, StageRecord, Task
from ..text import dollars, duration
from .lock import lock, recorded_environment
from .signals import StopSignals, interrupted
from .trial import try_evaluators


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
        findings += [Finding("note", text) for text in (*audit_notes(report), *report["notes"])]
        columns = recipe.dataset.columns
        named = next((k for k in ("targets", "target", "messages") if getattr(columns, k)), "target")
        findings += empty_targets(report, f"dataset.columns.{named}", recipe.dataset.allow_empty_targets)
    findings += _checked(recipe.backend, task, trains=True)
    for ref in recipe.controls:
        findings += _checked(ref, task, trains=False)
    findings += [f for ref in (recipe.backend, *recipe.controls) for f in unsupported_settings(ref, recipe.generation)]
    findings += _settings_without_effect(recipe.generation)
    findings += try_evaluators(recipe, task)
    if task is not None:
        findings += _audit_tokens(recipe.backend, task, report, [f for f in findings if f.level == "error"])
    controls = [{"control": ref.name, **_estimated(ref, task, trains=False)} for ref in recipe.controls]
    return Preflight(task, report, findings, _estimated(recipe.backend, task, trains=True), controls)


def _estimated(ref: PluginRef, task: Task | None, trains: bool) -> dict[str, Any]:
    try:
        return dict(ref.make().estimate(task, trains=trains))
    except Exception as error:  # an estimate that fails must not stop a run
        return {"not_estimated": f"{type(error).__name__}: {error}"}


def _checked(ref: PluginRef, task: Task | None, trains: bool) -> list[Finding]:
    key = "backend.plugin" if trains else "controls"
    try:
        return list(ref.make().check(task, trains=trains))
    except FtkitError as error:
        return [Finding("error", error.message, error.hint, key)]
    except Exception as error:  # a defect of a third-party plugin is a finding, not a crash
        message = f"{ref.kind} {ref.name!r}: check() raised {type(error).__name__}: {error}"
        return [Finding("error", message, key=key)]


def unsupported_settings(ref: PluginRef, generation: GenerationConfig) -> list[Finding]:
    """Return an error for each generation setting that differs from its default and that the backend does not follow."""
    follows = cast(type[Backend], ref.cls).generation_settings
    return [
        Finding(
            "error",
            f"backend {ref.name!r} does not support generation.{name}: it would be ignored",
            f"remove generation.{name}; this backend follows {', '.join(sorted(follows))}",
            f"generation.{name}",
        )
        for name in _changed(generation)
        if name not in follows
    ]


def _settings_without_effect(generation: GenerationConfig) -> list[Finding]:
    """Return a note for each setting of sampling where nothing is sampled."""
    if generation.temperature > 0:
        return []
    sampling = ("top_p", "top_k", "min_p")
    return [
        Finding("note", f"generation.{name} has no effect: temperature 0 does not sample", key=f"generation.{name}")
        for name in _changed(generation)
        if name in sampling
    ]


def _changed(generation: GenerationConfig) -> list[str]:
    """Return the names of the settings that differ from their defaults."""
    defaults = GenerationConfig.model_validate({}).to_dict()
    return [name for name, value in generation.to_dict().items() if value != defaults[name]]


def _audit_tokens(ref: PluginRef, task: Task, report: dict[str, Any], errors: Sequence[Finding]) -> list[Finding]:
    """Add token lengths to the audit, or why they could not be had; `errors`: what is known to stop the run already."""
    try:
        backend = ref.make()
        report["tokens"] = token_lengths(backend, task)
        return _token_findings(report["tokens"], backend.length_limit)
    except FtkitError as error:
        why, finding = error.message, Finding("error", error.message, error.hint, "backend")
    except Exception as error:  # a third-party plugin
        why = f"{ref.kind} {ref.name!r}: render() raised {type(error).__name__}: {error}"
        finding = Finding("error", why, key="backend.plugin")
    report["tokens"] = {"not_checked": why}
    if not errors:
        return [finding]
    # Whatever keeps the tokens from being shown keeps the model from being trained: it is reported once.
    known = {((e.key or "").split(".")[0], e.message) for e in errors}
    reason = "see the error above" if ("backend", why) in known else why
    return [Finding("note", f"not checked: token lengths ({reason})")]


def token_lengths(backend: Any, task: Task) -> dict[str, Any]:
    """Return per split median, p95 and max length in tokens, and how many examples lose tokens to the limit.

    Every example is rendered as training sees it: prompt and first target. `without_loss` counts examples whose
    loss mask is empty. `faults` are what is wrong with training examples, each with how many have it and the id of the
    first. {"not_checked": why} where the backend shows no tokens.
    """
    import numpy as np

    lengths: dict[str, Any] = {}
    try:
        for split, examples in task.splits.items():
            sizes: list[int] = []
            lose_prompt = lose_target = without_loss = 0
            faults: dict[str, dict[str, Any]] = {}
            for rendered in backend.render(examples):
                prompt, target = rendered.truncated
                sizes.append(len(rendered.ids) + prompt + target)
                lose_prompt += prompt > 0
                lose_target += target > 0
                without_loss += not any(rendered.loss_mask)
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
                    "without_loss": without_loss,
                    "faults": list(faults.values()),
                }
    except NotImplementedError as error:
        return {"not_checked": str(error)}
    return lengths


def _fault(rendered: Rendered, split: str) -> Finding | None:
    """Return why this example stops the run, or what to warn of; rows that are not trained on need only a prompt."""
    if split != "train" and rendered.ids:
        return None
    if rendered.finding is not None and rendered.finding.level == "error":
        return rendered.finding
    if any(rendered.loss_mask):
        return rendered.finding
    return Finding(
        "error",
        "the loss mask of this example is empty: no token of it is trained on",
        "look at one with `ftkit preview`",
    )


def _token_findings(lengths: dict[str, Any], limit: LengthLimit | None) -> list[Finding]:
    """Return what the lengths mean where the backend has this limit."""
    if "not_checked" in lengths:
        return [Finding("note", f"not checked: token lengths ({lengths['not_checked']})")]
    findings = []
    key = limit.key if limit else None
    if key is not None and limit is not None:
        fix = f"raise {key} (now {limit.tokens})"
    else:
        fix = "shorten the rows" + (f" (the limit is {limit.tokens:,} tokens)" if limit else "")
    fix += f", or {limit.hint}" if limit and limit.hint else ""
    for split, facts in lengths.items():
        for fault in facts["faults"]:
            more = f" (and {fault['examples'] - 1} more of {facts['rendered']})" if fault["examples"] > 1 else ""
            message = f"{split}: example {fault['first']!r}{more}: {fault['message']}"
            findings.append(Finding(fault["level"], message, fault["hint"], fault["key"]))
        hint = f"{fix}: 95 % of the {split} rows are below {facts['p95']:.0f} tokens"
        if split == "test":  # its answers are never trained on, and generation has the whole context
            if facts["lose_prompt_tokens"]:
                message = (
                    f"test: prompts longer than what training reads (the sequence limit): {facts['lose_prompt_tokens']} of "
                    f"{facts['rendered']}; the measurement reads the whole prompt, as far as the model's context reaches"
                )
                findings.append(Finding("warning", message, hint, key))
            continue
        for part in ("prompt", "target"):
            count = facts[f"lose_{part}_tokens"]
            if count:
                message = f"{split}: {count} of {facts['rendered']} examples lose {part} tokens to the sequence limit"
                findings.append(Finding("warning", message, hint, key))
    return findings


# ---------------------------------------------------------------- the price


def confirm_price(estimates: Sequence[dict[str, Any]], console: Console, yes: bool) -> None:
    """Show what runs are estimated to cost, and ask before any of it is spent. Raises InputError on a no."""
    priced = [e for e in estimates if (e.get("usd") or 0) > 0]
    unknown = [e for e in estimates if e.get("paid") and e.get("usd") is None]
    for estimate in priced:
        price = f"{_of_control(estimate)}{dollars(estimate['usd'])}"
        console.say(f"  estimated price: {price}. {estimate.get('usd_detail', '')}".rstrip())
    for estimate in unknown:
        why = f"{_of_control(estimate)}{estimate.get('not_estimated', 'the backend does not say why')}"
        console.say(f"  the price is not known: {why}")
    amounts = [f"about {dollars(sum(e['usd'] for e in priced))}"] if priced else []
    amounts += ["an amount that is not known"] if unknown else []
    if not amounts or yes or console.confirm(f"Spend {' and '.join(amounts)}?"):
        return
    raise InputError(
        f"not started: it would cost {' and '.join(amounts)}, and that was not confirmed; nothing was spent",
        "confirm with --yes (in Python: yes=True)",
    )


def _of_control(estimate: dict[str, Any]) -> str:
    return f"control {estimate['control']}, " if "control" in estimate else ""


# ---------------------------------------------------------------- the directory


def prepare(
    recipes: Sequence[Recipe],
    out: Path,
    console: Console,
    reuse: bool = True,
    yes: bool = False,
    where: str | None = None,
) -> list[RunDirectory]:
    """Return one prepared run directory under `out` for each recipe: all of them, or none.

    `reuse` allows copying the baseline's predictions from another run in `out` that has the same key; `yes` spends
    the estimated price without asking; `where` names the launcher that is to execute the runs. Raises RecipeError
    with the mistakes of all recipes, InputError where the price was not confirmed.
    """
    forget_commits()
    with StopSignals(), tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "debug.log")
        runs: list[RunDirectory] = []
        try:
            with console.quiet(log):
                environments = [recorded_environment(recipe) for recipe in recipes]  # before libraries set some
                checked = _preflights(recipes, console)
                problems = [
                    problem
                    for recipe, (found, _) in zip(recipes, checked, strict=True)
                    for problem in problems_of(recipe, found.errors)
                ]
                problems = list(dict.fromkeys(problems))  # of several seeds, once
                if problems:
                    raise RecipeError(problems)
                confirm_price([e for found, _ in checked for e in found.estimates], console, yes)
                for recipe, (found, stage), environment in zip(recipes, checked, environments, strict=True):
                    runs.append(RunDirectory.create(out, recipe.name))
                    _write(runs[-1], recipe, found, environment)
                    shutil.copyfile(log, runs[-1].path("debug.log"))
                    record = RunRecord(runs[-1].id, recipe.name, "prepared", stage.started, reuse=reuse, where=where)
                    runs[-1].save_record(
                        replace(record, stages=(stage,), warnings=tuple(dict.fromkeys(found.warnings)))
                    )
        except BaseException as error:
            for run in runs:
                shutil.rmtree(run.dir, ignore_errors=True)
            if isinstance(error, KeyboardInterrupt):
                raise interrupted(None) from None
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RunFailed(f"the disk is full: {error.filename or out}", "nothing was spent") from None
            raise
    return runs


def _preflights(recipes: Sequence[Recipe], console: Console) -> list[tuple[Preflight, StageRecord]]:
    """Check each recipe; those that differ in `seed` and `name` alone share one check."""
    known: dict[str, tuple[Preflight, StageRecord]] = {}
    keys = [digest({**recipe.to_dict(), "seed": None, "name": None}) for recipe in recipes]
    for key, recipe in zip(keys, recipes, strict=True):
        if key not in known:
            known[key] = _preflight_of(recipe, console, several=len(recipes) > 1)
    return [known[key] for key in keys]


def _preflight_of(recipe: Recipe, console: Console, several: bool) -> tuple[Preflight, StageRecord]:
    """Check one recipe, and show what was found."""
    of = f" {recipe.name}" if several else ""
    console.say(f"prepare{of} ...")
    started, began = utc_now(), time.monotonic()
    for ref in (*recipe.evaluators, *recipe.tracking):
        ref.make()  # a plugin that cannot be set up stops the run before the first stage
    found = preflight(recipe)
    for finding in found.findings:
        if finding.level == "note":
            console.say(f"  note: {finding.message}")
    for text in found.warnings:
        console.warn(text)
    seconds = time.monotonic() - began
    rows = {split: len(part) for split, part in found.task.splits.items()} if found.task else {}
    if not found.errors:
        console.say(f"prepare{of}: done in {duration(seconds)}")
    return found, StageRecord("prepare", "done", started, round(seconds, 3), meta={"rows": rows})


def _write(run: RunDirectory, recipe: Recipe, found: Preflight, environment: Mapping[str, str]) -> None:
    """Write all that executing the run needs, but for run.json."""
    assert found.task is not None
    write_atomic(run.path("recipe.yaml"), recipe.to_yaml())
    run.recipe, run.task = recipe, found.task
    run.save_task(found.task)
    estimates = {"estimate": found.estimate, "control_estimates": found.control_estimates}
    write_json(run.path("audit.json"), {**found.audit, **estimates})
    backend = recipe.backend.make()
    write_json(
        run.path("lock.json"),
        {
            **lock(recipe, environment),
            "data": {**found.task.source, "fingerprints": found.task.fingerprints, "prompt": found.task.prompt_hash},
            "model": {"plugin": backend.name, **backend.identity(backend.base_model(), run)},
            "seed": recipe.seed,
            "recipe": hashlib.sha256(run.path("recipe.yaml").read_bytes()).hexdigest(),
        },
    )
