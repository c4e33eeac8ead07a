"""Training seeds: runs whose recipe differs only in `seed` and `name` are one system, and what may be said of it.

Between two trained systems the test rows are not the only source of chance: another seed gives another model. So a
verdict about recipes needs several seeds of each; of single training runs the report says which one scored higher.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..directory import RunDirectory
from ..files import digest, read_json
from ..lang import joined, msg, tr
from ..recipe import yaml as yaml_source
from ..records import Delta, Metric, System
from ..stats import PairedDelta
from .measured import Measured
from .names import Names
from .seed_stats import CONFIDENCE, Floats, seed_interval

RUN, RECIPE = "run", "recipe"  # what a verdict speaks of: one training run, or the recipe over its seeds
HOW_TO = msg("train each recipe with several seeds: ftkit run RECIPE --seeds 3")

Origins = Mapping[str, tuple[str, int]]  # run id -> (hash of its recipe without `seed` and `name`, its seed)


@dataclass
class SeedGroup(Measured):
    """The measurements of one recipe with several training seeds, as one system; `by_seed` has those of each seed."""

    by_seed: dict[int, list[Measured]] = field(default_factory=dict)
    same_answers: bool = False  # all seeds answered alike: they count as one training run

    def values(self, metric: str) -> list[dict[str, float]]:
        """Return each seed's values by example id; a seed that was trained more than once counts by its mean."""
        return [_mean_by_id([m.means(metric) for m in members]) for members in self.by_seed.values()]

    def means(self, metric: str) -> dict[str, float]:
        """Return each example's mean over the seeds; only examples that all seeds have scored."""
        if metric not in self._means:
            self._means[metric] = _mean_by_id(self.values(metric))
        return self._means[metric]


def _mean_by_id(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    common = [i for i in values[0] if all(i in v for v in values[1:])]
    return {i: sum(v[i] for v in values) / len(values) for i in common}


# ---------------------------------------------------------------- which runs belong together


def origins_of(runs: Sequence[RunDirectory]) -> dict[str, tuple[str, int]]:
    """Return by run id a hash of its recipe (without `seed` and `name`) and data, and its seed; none for scored files."""
    found = {}
    for run in runs:
        path, lock = run.path("recipe.yaml"), run.path("lock.json")
        if run.record().kind != "run" or not path.exists():
            continue
        try:
            recipe = yaml_source.read_file(str(path), []).plain()  # plain YAML: needs none of the run's plugins
        except yaml_source.Unreadable:
            continue  # `build` warns of it
        seed = recipe.get("seed") if isinstance(recipe, dict) else None
        if isinstance(seed, int):
            data = (read_json(lock).get("data") or {}).get("fingerprints") if lock.exists() else None
            rest = {key: value for key, value in recipe.items() if key not in ("seed", "name")}
            found[run.id] = digest([rest, data]), seed
    return found


def same_recipe(a: Measured, b: Measured, origins: Origins) -> bool:
    """Say whether two measurements are of runs that differ in `seed` and `name` alone."""
    return a.run.id in origins and b.run.id in origins and origins[a.run.id][0] == origins[b.run.id][0]


def group_seeds(
    measured: Sequence[Measured], origins: Origins, names: Names, notes: list[str], warnings: list[str]
) -> list[Measured]:
    """Return `measured` with the trained systems of one recipe and several seeds as one, in the place of the first.

    All systems learn which seeds they were trained with, and those of a group's runs get the group's name.
    """
    clusters: dict[str, list[Measured]] = {}
    for m in measured:
        clusters.setdefault(_cluster(m, origins), []).append(m)
    shown: list[Measured] = []
    grouped: dict[str, SeedGroup] = {}  # by recipe hash: its first group
    for members in clusters.values():
        seeds = sorted({origins[m.run.id][1] for m in members if m.run.id in origins})
        first = members[0]
        if len(seeds) > 1 and _is_trained(first):
            group = _group(members, {s: [m for m in members if origins[m.run.id][1] == s] for s in seeds})
            grouped.setdefault(origins[first.run.id][0], group)
            shown.append(group)
        elif len(members) > 1 and not _is_trained(first):  # a base model, measured by each run: the same for all seeds
            first.used_by |= {m.run.id for m in members}
            shown.append(first)
        else:
            shown += [_with_seed(m, origins) for m in members]
    if grouped:
        _rename(shown, grouped, origins, names)
    for m in shown:
        if isinstance(m, SeedGroup):
            _describe(m, notes, warnings)
    return shown


def _cluster(m: Measured, origins: Origins) -> str:
    """Return a hash that measurements of one recipe and one kind share; one of its own for what is never grouped."""
    if m.run.id not in origins or m.system.role not in ("tuned", "further", "export", "extra"):
        return f"{m.run.id} {m.system.stage}"
    key = m.run.path(m.system.stage, "key.json")
    same_request = None if _is_trained(m) or not key.exists() else read_json(key)
    return digest([origins[m.run.id][0], m.system.stage, m.system.role, m.system.settings, same_request])


def _is_trained(m: Measured) -> bool:
    """Say whether a measurement is of a model that its run has trained; answers from elsewhere count as fixed."""
    if m.system.role in ("further", "export", "extra"):
        measured = m.run.measured()
        base = m.run.measurement("baseline").get("model") if "baseline" in measured else None
        return bool(m.run.measurement(m.system.stage).get("model") != base)
    return m.system.role == "tuned"


def _with_seed(m: Measured, origins: Origins) -> Measured:
    if _is_trained(m) and m.run.id in origins:
        m.system = replace(m.system, seeds=(_seed_facts(origins[m.run.id][1], [m]),))
    return m


def _seed_facts(seed: int, members: Sequence[Measured]) -> dict[str, Any]:
    values = {
        name: sum(m.system.metrics[name].value for m in members) / len(members)
        for name in members[0].system.metrics
        if all(name in m.system.metrics for m in members)
    }
    return {"seed": seed, "runs": [m.run.id for m in members], "metrics": values}


# ---------------------------------------------------------------- one system of several


def _group(members: Sequence[Measured], by_seed: dict[int, list[Measured]]) -> SeedGroup:
    first = by_seed[min(by_seed)][0]
    group = SeedGroup(
        members[0].system, members[0].run, first.predictions, first.scores, {i for m in members for i in m.used_by}
    )
    group.by_seed = by_seed
    answers = [{i: (p.text, p.error) for i, p in m.predictions.items()} for m in members]
    group.same_answers = bool(answers[0]) and all(a == answers[0] for a in answers[1:])
    seeds = tuple(_seed_facts(seed, of_seed) for seed, of_seed in by_seed.items())
    names = [name for name in seeds[0]["metrics"] if all(name in s["metrics"] for s in seeds)]
    values = {name: [s["metrics"][name] for s in seeds] for name in names}
    systems = [m.system for m in members]
    group.system = replace(
        members[0].system,
        metrics={name: _metric(group, name, values[name]) for name in names},
        seeds=seeds,
        spread={
            name: {"sd": float(np.std(v, ddof=1)), "min": min(v), "max": max(v)} for name, v in values.items()
        },
        # What one training takes; and what all the measurements took together.
        train_seconds=_mean(s.train_seconds for s in systems),
        train_usd=_mean(s.train_usd for s in systems),
        **{key: _sum(getattr(s, key) for s in systems) for key in _SUMS},
        peak_memory=max((s.peak_memory for s in systems if s.peak_memory is not None), default=None),
        n_predictions=sum(s.n_predictions for s in systems),
        n_priced=sum(s.n_priced for s in systems),
        n_failed=sum(s.n_failed for s in systems),
        n_length_limit=sum(s.n_length_limit for s in systems),
    )  # fmt: skip
    return group


_SUMS = ("seconds", "measure_usd", "usd", "tokens_in", "tokens_out")


def _sum(values: Iterable[Any]) -> Any:
    known = [v for v in values if v is not None]
    return sum(known) if known else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _metric(group: SeedGroup, name: str, values: Sequence[float]) -> Metric:
    """Return the mean over the seeds with its interval, which never is narrower than a single seed's rows make it."""
    metrics = [m.system.metrics[name] for members in group.by_seed.values() for m in members]
    total, value = max(m.n + m.n_unscored for m in metrics), sum(values) / len(values)
    ids = sorted(group.means(name))
    facts: dict[str, Any] = {"value": value, "n": len(ids), "n_unscored": total - len(ids)}
    if group.same_answers:
        return metrics[0]
    if not ids:  # it is computed from all answers together
        why = "no interval: this metric is not a mean over rows"
        return replace(metrics[0], **facts | {"n": metrics[0].n, "n_unscored": metrics[0].n_unscored}, low=None, high=None, method=why)  # fmt: skip
    if len(ids) < 2:
        return replace(metrics[0], **facts, low=None, high=None, method="no interval from one example")
    rows = _matrix(group, name, ids)
    found = seed_interval(None, rows)
    low, high = value + found.low - found.delta, value + found.high - found.delta
    if rows.min() >= 0 and rows.max() <= 1 and metrics[0].unit == "fraction":
        low, high = max(0.0, low), min(1.0, high)
    how = f"95 % interval over {len(values)} training seeds and {len(ids)} examples (Student's t for each)"
    return replace(metrics[0], **facts, low=low, high=high, method=how)


def _matrix(m: Measured, metric: str, ids: Sequence[str]) -> Floats:
    """Return values of shape (seeds, rows); one seed where there is one training run, or none."""
    several = isinstance(m, SeedGroup) and not m.same_answers
    values = m.values(metric) if isinstance(m, SeedGroup) and several else [m.means(metric)]
    return np.array([[v[i] for i in ids] for v in values], dtype=np.float64)


def _describe(group: SeedGroup, notes: list[str], warnings: list[str]) -> None:
    seeds, name = list(group.by_seed), group.system.name
    listed = ", ".join(map(str, seeds))
    for seed, members in group.by_seed.items():
        if len(members) > 1:
            text = msg("{name}: seed {seed} was trained {n} times; their mean counts as one seed")
            notes.append(tr(text, name=name, seed=seed, n=len(members)))
    if group.same_answers:
        text = msg(
            "{name}: the training seeds {seeds} gave the same answers to all rows. Either the seed does not reach the "
            "training, or these rows cannot show it: they count as one training run"
        )
        warnings.append(tr(text, name=name, seeds=listed))
    else:
        text = msg("{name}: mean of {n} training seeds ({seeds}); its interval covers the choice of seeds and of rows")
        notes.append(tr(text, name=name, n=len(seeds), seeds=listed))


# ---------------------------------------------------------------- names


def _rename(shown: Sequence[Measured], grouped: Mapping[str, SeedGroup], origins: Origins, called: Names) -> None:
    """Give the systems of a group's runs its name ("NAME tuned"; "tuned" where the report is of nothing else).

    Groups whose runs share their names are called by what differs.
    """
    entity = {m.run.id: origins[m.run.id][0] if origins.get(m.run.id, ("",))[0] in grouped else m.run.id for m in shown}
    names = {e: m.run.record().name for m in shown if (e := entity[m.run.id]) not in grouped}
    names |= {key: _stem(group) for key, group in grouped.items()}
    taken = {m.system.name for m in shown if entity[m.run.id] not in grouped}
    for m in shown:
        key = entity[m.run.id]
        if key not in grouped:
            continue
        alone = len(names) == 1
        is_own = list(names.values()).count(names[key]) == 1
        name = names[key] if is_own else f"{grouped[key].run.id} ({len(grouped[key].by_seed)} seeds)"
        wanted = m.system.stage if alone else f"{name} {m.system.stage}"
        if not is_own and not alone:
            what = called.shared(sorted(m.used_by))
            wanted = (what if m.system.role == "tuned" else f"{what} {m.system.stage}".strip()) or wanted
        if wanted not in taken:
            m.system = replace(m.system, name=wanted)
        taken.add(m.system.name)


def call_by_difference(measured: Sequence[Measured], called: Names) -> None:
    """Name the systems whose runs share a name by what differs between them."""
    wanted = [called.system(m.run.id, m.system.stage, m.used_by, m.system.role == "tuned") for m in measured]
    for m, name in zip(measured, wanted, strict=True):
        if name and wanted.count(name) == 1 and all(name != other.system.name for other in measured):
            m.system = replace(m.system, name=name)


def _stem(group: SeedGroup) -> str:
    """Return the name that the runs share without their seeds; else the first one's, and how many more there are."""
    names = [(m.run.record().name, seed) for seed, members in group.by_seed.items() for m in members]
    stems = {re.sub(rf"(?i)[-_.]*(seed|s)?[-_.=]*{seed}$", "", name) or name for name, seed in names}
    whole = {name for name, _ in names}
    if len(whole) == 1:
        return whole.pop()
    return stems.pop() if len(stems) == 1 else tr("{names} and {n} more", names=names[0][0], n=len(names) - 1)


def title_of(runs: Sequence[RunDirectory], shown: Sequence[Measured]) -> str:
    """Return the report's title: the runs by name, those of a group by the group's."""
    groups = {part.run.id: m for m in shown if isinstance(m, SeedGroup) for part in parts(m)}
    names = {
        i: tr("{name} ({n} training seeds)", name=_stem(group), n=len(group.by_seed)) for i, group in groups.items()
    }
    return joined(list(dict.fromkeys(names.get(run.id) or run.record().name for run in runs)), " vs ")


# ---------------------------------------------------------------- what a difference may say


def parts(m: Measured) -> list[Measured]:
    """Return the measurements that a system consists of."""
    return [part for members in m.by_seed.values() for part in members] if isinstance(m, SeedGroup) else [m]


def systems_of(*measured: Measured) -> list[System]:
    return [part.system for m in measured for part in parts(m)]


def answers_of(m: Measured) -> list[tuple[str, Measured]]:
    """Return (name, measurement) of everything whose answers the report shows of a system."""
    if not isinstance(m, SeedGroup):
        return [(m.system.name, m)]
    return [
        (f"{m.system.name}, seed {seed}" + (f", run {part.run.id}" if len(members) > 1 else ""), part)
        for seed, members in m.by_seed.items()
        for part in members
    ]


def widen(a: Measured, b: Measured, metric: str, found: PairedDelta, confidence: float = CONFIDENCE) -> PairedDelta:
    """Return a difference over rows, widened by the chance of the training seeds where a side has several.

    It keeps the larger p, and ends where the wider of both intervals ends: it never says more than the rows alone do.
    """
    several = [m for m in (a, b) if isinstance(m, SeedGroup) and not m.same_answers]
    ids = sorted(a.means(metric).keys() & b.means(metric).keys())
    if not several or found.low is None or found.high is None or found.p_value is None or len(ids) < 2:
        return found
    rows_a, rows_b = _matrix(a, metric, ids), _matrix(b, metric, ids)
    seeds = seed_interval(rows_a, rows_b, confidence)
    low, high = min(found.low, seeds.low), max(found.high, seeds.high)
    limit = 1.0 if all(r.min() >= 0 and r.max() <= 1 for r in (rows_a, rows_b)) else np.inf
    bounded = b.system.metrics[metric].unit == "fraction"
    low, high = (max(low, -limit), min(high, limit)) if bounded else (low, high)
    return found._replace(low=low, high=high, p_value=max(found.p_value, seeds.p_value))


def about(a: Measured, b: Measured) -> str:
    """Return what a verdict on `b` against `a` speaks of: "run", "recipe", or "" where nothing was trained."""
    trained = [m for m in (a, b) if _is_trained(m)]
    if not trained:
        return ""
    return RECIPE if all(isinstance(m, SeedGroup) and not m.same_answers for m in trained) else RUN


def single_runs(a: Measured, b: Measured) -> list[Measured]:
    """Return the sides that are one training run, where both were trained: then nothing is claimed of the recipes."""
    if not (_is_trained(a) and _is_trained(b)):
        return []
    return [m for m in (a, b) if not isinstance(m, SeedGroup) or m.same_answers]


def claim(delta: Delta, a: Measured, b: Measured) -> Delta:
    """Return the difference with a verdict on runs, not on recipes, where a side is a single training run."""
    verdict = delta.verdict
    if verdict in ("better", "worse") and single_runs(a, b):
        verdict = "scored higher" if delta.delta > 0 else "scored lower"
    return replace(delta, verdict=verdict)


def scored(delta: Delta, a: Measured, b: Measured) -> str:
    """Return the headline on two trained systems of which one is a single training run."""
    if len(single_runs(a, b)) == 2:
        text = msg("This training run scored higher than that one: {b} against {a}")
        if delta.verdict == "scored lower":
            text = msg("This training run scored lower than that one: {b} against {a}")
        return tr(text, b=b.system.name, a=a.system.name)
    text = msg("{b} scored lower than {a}") if delta.verdict == "scored lower" else msg("{b} scored higher than {a}")
    return tr(text, b=b.system.name, a=a.system.name)


def no_claim(a: Measured, b: Measured) -> str:
    """Return the sentence that says why nothing is claimed of the recipes, or ""."""
    single = [m.system.name for m in single_runs(a, b)]
    if not single:
        return ""
    runs = tr("Each is one training run") if len(single) == 2 else tr("{name} is one training run", name=single[0])
    text = msg(" {runs}: another seed may change the order, so nothing is claimed of the recipes; {how_to}.")
    return tr(text, runs=runs, how_to=tr(HOW_TO))


def notes_on_runs(deltas: Iterable[Delta], said: str) -> list[str]:
    """Return the note on what "scored higher" means, unless the verdict has `said` so."""
    if "nothing is claimed of the recipes" in said or not any(
        d.verdict in ("scored higher", "scored lower") for d in deltas
    ):
        return []
    text = msg(
        "“scored higher” and “scored lower” speak of single training runs: nothing is claimed of the recipes; {how_to}"
    )
    return [tr(text, how_to=tr(HOW_TO))]


def seeds_in_words(m: Measured, sd: str) -> str:
    """Return ", one training seed" or ", 3 training seeds (standard deviation 0.42)"; `sd` is that number, written."""
    if isinstance(m, SeedGroup) and not m.same_answers:
        return tr(", {n} training seeds (standard deviation {sd})", n=len(m.by_seed), sd=sd)
    return tr(", one training seed") if m.system.role == "tuned" else ""
