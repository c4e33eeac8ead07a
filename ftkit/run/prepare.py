"""Make a run directory that can be executed: check all that can be known, confirm the price, write data and lock.

Nothing is spent here, and a directory exists only when everything was right: its run.json is written last.
"""

from __future__ import annotations

import errno
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
from ..directory import RunDirectory, new_name, utc_now
from ..errors import FtkitError, Problem, RecipeError, RunFailed
from ..files import digest, write_atomic, write_json
from ..hub import forget_commits
from ..lang import tr, word
from ..recipe.load import PluginRef, Recipe
from ..recipe.lookalikes import with_lookalikes
from ..records import Finding, GenerationConfig, LengthLimit, Machine, Rendered, RunRecord, StageRecord, Task
from ..text import duration
from .elsewhere import ESTIMATE, HERE, launch_estimate
from .exportable import export_findings
from .lock import lock_of, recorded_environment
from .prices import confirm_price
from .signals import StopSignals, interrupted
from .trial import try_evaluators
from .used import keep_files, reopened

_TOLD = 100  # rows between two messages on how many were looked at


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
    found = [Problem(f.message, *place, f.key, f.hint, f.level) for f, place in zip(findings, places, strict=True)]
    return with_lookalikes(found)


def preflight(recipe: Recipe, console: Console | None = None, machine: Machine | None = None) -> Preflight:
    """Read the data, audit it, and ask every plugin of the recipe whether it could work. Spends nothing.

    `console` shows what is going on. `machine` is the one to answer for; None is this one.
    """
    console = console or Console(silent=True)
    findings: list[Finding] = [Finding("note", note) for note in recipe.notes]
    task: Task | None = None
    report: dict[str, Any] = {}
    console.phase(tr("reading the data"))
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
    console.phase(tr("checking model and options"))
    findings += _checked(recipe.backend, task, True, machine)
    for ref in recipe.controls:
        findings += _checked(ref, task, False, machine)
    findings += [f for ref in (recipe.backend, *recipe.controls) for f in unsupported_settings(ref, recipe.generation)]
    findings += _settings_without_effect(recipe.generation)
    findings += _export_findings(recipe)
    console.phase(tr("trying the evaluators"))
    findings += try_evaluators(recipe, task)
    if task is not None:
        errors = [f for f in findings if f.level == "error"]
        findings += _audit_tokens(recipe.backend, task, report, errors, console)
    console.phase(tr("estimating"))
    controls = [{"control": ref.name, **_estimated(ref, task, False, machine)} for ref in recipe.controls]
    return Preflight(task, report, findings, _estimated(recipe.backend, task, True, machine), controls)


def _backend(ref: PluginRef, machine: Machine | None) -> Backend:
    backend: Backend = ref.make()
    if machine is not None:
        backend.machine = machine
    return backend


def _estimated(ref: PluginRef, task: Task | None, trains: bool, machine: Machine | None) -> dict[str, Any]:
    try:
        return dict(_backend(ref, machine).estimate(task, trains=trains))
    except Exception as error:  # an estimate that fails must not stop a run
        return {"not_estimated": f"{type(error).__name__}: {error}"}


def _checked(ref: PluginRef, task: Task | None, trains: bool, machine: Machine | None) -> list[Finding]:
    key = "backend.plugin" if trains else "controls"
    try:
        return list(_backend(ref, machine).check(task, trains=trains))
    except FtkitError as error:
        return [Finding("error", error.message, error.hint, key)]
    except Exception as error:  # a defect of a third-party plugin is a finding, not a crash
        message = f"{ref.kind} {ref.name!r}: check() raised {type(error).__name__}: {error}"
        return [Finding("error", message, key=key)]


def _export_findings(recipe: Recipe) -> list[Finding]:
    """Return what keeps the export that the recipe asks for from being made: a missing program, say."""
    if recipe.export is None:
        return []
    try:
        found = list(export_findings(recipe.backend.make(), recipe.export, None))
    except FtkitError as error:
        return [Finding("error", error.message, error.hint, "export")]
    except Exception as error:  # a defect of a third-party plugin
        name = recipe.backend.name
        return [
            Finding("error", f"backend {name!r}: check_export() raised {type(error).__name__}: {error}", key="export")
        ]
    return [replace(f, key=f.key or "export") for f in found]


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


def _audit_tokens(
    ref: PluginRef, task: Task, report: dict[str, Any], errors: Sequence[Finding], console: Console
) -> list[Finding]:
    """Add token lengths to the audit, or why they could not be had; `errors`: what is known to stop the run already."""
    try:
        backend = ref.make()
        report["tokens"] = token_lengths(backend, task, console)
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


def token_lengths(backend: Any, task: Task, console: Console | None = None) -> dict[str, Any]:
    """Return per split median, p95 and max length in tokens, and how many examples lose tokens to the limit.

    Every example is rendered as training sees it: prompt and first target. `without_loss` counts examples whose
    loss mask is empty. `faults` are what is wrong with training examples, each with how many have it and the id of the
    first. {"not_checked": why} where the backend shows no tokens.
    """
    import numpy as np

    lengths: dict[str, Any] = {}
    console = console or Console(silent=True)
    console.phase(tr("loading the tokenizer"))
    try:
        for split, examples in task.splits.items():
            sizes: list[int] = []
            lose_prompt = lose_target = without_loss = 0
            faults: dict[str, dict[str, Any]] = {}
            for number, rendered in enumerate(backend.render(examples)):
                if number % _TOLD == 0:
                    console.progress(tr("counting the tokens of {split}", split=word(split)), number, len(examples))
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


# ---------------------------------------------------------------- the directory


def prepare(
    recipes: Sequence[Recipe],
    out: Path,
    console: Console,
    reuse: bool = True,
    yes: bool = False,
    where: str | None = None,
    later: Sequence[dict[str, Any]] = (),
) -> list[RunDirectory]:
    """Return one prepared run directory under `out` for each recipe: all of them, or none.

    `reuse` allows copying the baseline's predictions from another run in `out` that has the same key; `yes` spends
    the estimated price without asking; `where` names the launcher that is to execute the runs; `later` are estimates of
    what follows these runs, confirmed with them. Raises RecipeError
    with the mistakes of all recipes, InputError where the price was not confirmed.
    """
    forget_commits()
    group = new_name("group") if len(recipes) > 1 else None
    with StopSignals(), tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "debug.log")
        runs: list[RunDirectory] = []
        try:
            with console.quiet(log):
                environments = [recorded_environment(recipe) for recipe in recipes]  # before libraries set some
                checked = preflights(recipes, console, elsewhere=where not in (None, HERE))
                problems = [
                    problem
                    for recipe, (found, _) in zip(recipes, checked, strict=True)
                    for problem in problems_of(recipe, found.errors)
                ]
                problems = list(dict.fromkeys(problems))  # of several seeds, once
                if problems:
                    raise RecipeError(problems)
                launches = [launch_estimate(where, found.estimates) for found, _ in checked]
                estimates = [*(e for found, _ in checked for e in found.estimates), *later]
                confirm_price([*estimates, *filter(None, launches)], console, yes)
                for recipe, (found, stage), environment, launch in zip(
                    recipes, checked, environments, launches, strict=True
                ):
                    runs.append(RunDirectory.create(out, recipe.name))
                    _write(runs[-1], recipe, found, environment, launch)
                    shutil.copyfile(log, runs[-1].path("debug.log"))
                    record = RunRecord(
                        runs[-1].id, recipe.name, "prepared", stage.started, reuse=reuse, where=where, mark=runs[-1].id
                    )
                    warnings = tuple(dict.fromkeys(found.warnings))
                    runs[-1].save_record(replace(record, stages=(stage,), warnings=warnings, group=group))
        except BaseException as error:
            for run in runs:
                shutil.rmtree(run.dir, ignore_errors=True)
            if isinstance(error, KeyboardInterrupt):
                raise interrupted(None) from None
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RunFailed(f"the disk is full: {error.filename or out}", "nothing was spent") from None
            raise
    return runs


def preflights(
    recipes: Sequence[Recipe], console: Console, elsewhere: bool = False
) -> list[tuple[Preflight, StageRecord]]:
    """Check each recipe; those that differ in `seed` and `name` alone share one check."""
    known: dict[str, tuple[Preflight, StageRecord]] = {}
    keys = [digest({**recipe.to_dict(), "seed": None, "name": None}) for recipe in recipes]
    for key, recipe in zip(keys, recipes, strict=True):
        if key not in known:
            known[key] = _preflight_of(recipe, console, several=len(recipes) > 1, elsewhere=elsewhere)
    return [known[key] for key in keys]


def _preflight_of(recipe: Recipe, console: Console, several: bool, elsewhere: bool) -> tuple[Preflight, StageRecord]:
    """Check one recipe, and show what was found. `elsewhere`: what this machine lacks is only a note."""
    of = f" {recipe.name}" if several else ""
    console.say(tr("{stage} ...", stage=tr("prepare") + of))
    started, began = utc_now(), time.monotonic()
    for ref in (*recipe.evaluators, *recipe.tracking):
        ref.make()  # a plugin that cannot be set up stops the run before the first stage
    with console.working(tr("prepare") + of):
        found = preflight(recipe, console)
    if elsewhere:
        found = replace(found, findings=[_of_this_machine(f) for f in found.findings])
    for finding in found.findings:
        if finding.level == "note":
            console.say("  " + tr("note: {text}", text=finding.message))
    for text in found.warnings:
        console.warn(text)
    seconds = time.monotonic() - began
    rows = {split: len(part) for split, part in found.task.splits.items()} if found.task else {}
    if not found.errors:
        console.say(tr("{stage}: done in {time}", stage=tr("prepare") + of, time=duration(seconds)))
    return found, StageRecord("prepare", "done", started, round(seconds, 3), meta={"rows": rows})


def _of_this_machine(finding: Finding) -> Finding:
    if not finding.here or finding.level == "note":
        return finding
    return replace(finding, level="note", message=f"{finding.message}; the run is executed on another machine")


def _write(
    run: RunDirectory, recipe: Recipe, found: Preflight, environment: Mapping[str, str], launch: dict[str, Any]
) -> None:
    """Write all that executing the run needs, but for run.json."""
    assert found.task is not None
    write_atomic(run.path("recipe.yaml"), keep_files(run, recipe))
    run.recipe, run.task = reopened(run, recipe), found.task
    run.save_task(found.task)
    estimates = {"estimate": found.estimate, "control_estimates": found.control_estimates}
    estimates |= {ESTIMATE: launch} if launch else {}
    write_json(run.path("audit.json"), {**found.audit, **estimates})
    own = replace(run.recipe, source=recipe.source, root=recipe.root, dataset=recipe.dataset)
    write_json(run.path("lock.json"), lock_of(run, own, environment))
