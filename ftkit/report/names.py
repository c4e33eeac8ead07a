"""Systems called by what differs: the keys in which the resolved recipes of a report's runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ..directory import RunDirectory
from ..lang import tr
from ..plugins import installed_plugins
from ..recipe import yaml as yaml_source
from ..records import Differing
from ..text import one_line, visible

NEVER = ("name", "note", "seed", "tracking", "source")  # keys that are no difference between two recipes
NAMED = 3  # keys in a name
VALUE = 24  # characters of a value in a name
CELL = 80  # characters of a value in the table
_MISSING = object()


@dataclass
class Names:
    """How a report calls its runs and what differs between them. Build it with `names_of`.

    `labels` are the runs' names by id: that of the recipe where it is its own, else what differs, else the id.
    """

    labels: dict[str, str]
    by_difference: set[str] = field(default_factory=set)  # ids of the runs that are called by what differs
    values: dict[str, dict[str, Any]] = field(default_factory=dict)  # key -> run id -> value, of keys that differ
    short: dict[str, str] = field(default_factory=dict)

    def shared(self, runs: Iterable[str], most: int = NAMED) -> str:
        """Return what these runs have in common and others have not: "lr=0.004 r=8"; "" where that is nothing."""
        found = []
        for key, by_run in self.values.items():
            own = [by_run.get(run, _MISSING) for run in runs]
            if own and _MISSING not in own and len({_same(v) for v in own}) == 1:
                found.append(f"{self.short[key]}={written(own[0], VALUE)}")
        name = " ".join(found[:most])
        return name if len(found) <= most else tr("{names} and {n} more", names=name, n=len(found) - most)

    def system(self, run: str, stage: str, used_by: Iterable[str], is_final: bool) -> str | None:
        """Return the name of a system whose run is called by what differs; None where another name is its own."""
        if run not in self.by_difference:
            return None
        what = self.shared(sorted(used_by)) or (self.labels[run] if is_final else "")
        return what if is_final else f"{what} {stage}".strip()

    def table(self, systems: Mapping[str, set[str]]) -> Differing | None:
        """Return the keys that differ, with one column for each system: `systems` maps its name to its runs' ids."""
        rows = []
        for key, by_run in self.values.items():
            values = []
            for runs in systems.values():
                own = dict.fromkeys(written(by_run[run], CELL) for run in sorted(runs) if run in by_run)
                values.append(", ".join(own) or None)
            if len(set(values)) > 1:
                rows.append({"key": key, "short": self.short[key], "values": values})
        return Differing(tuple(systems), tuple(rows)) if rows and len(systems) > 1 else None


def names_of(runs: Sequence[RunDirectory], origins: Mapping[str, tuple[str, int]]) -> Names:
    """Return how the report calls `runs`; `origins` are those of `seeds.origins_of`."""
    records = {run.id: run.record() for run in runs}
    flat = {run.id: _flat(recipe_of(run)) for run in runs if records[run.id].kind == "run"}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    values = {key: {run: found[key] for run, found in flat.items() if key in found} for key in keys}
    values = {key: by_run for key, by_run in values.items() if len({_same(v) for v in by_run.values()}) > 1}
    names = Names({}, values=values, short=_short_names(values, flat))
    names_seen = [record.name for record in records.values()]
    wanted = {run: _by_difference(names, run, origins) for run in flat}
    for run, record in records.items():
        if names_seen.count(record.name) == 1:
            names.labels[run] = record.name
            continue
        name = wanted.get(run, "")
        rivals = [other for other in wanted if other != run and wanted[other] == name]
        names.labels[run] = name if name and not rivals else run
        if (name and not rivals) or _grouped(run, rivals, names, origins):
            names.by_difference.add(run)
    return names


def _by_difference(names: Names, run: str, origins: Mapping[str, tuple[str, int]]) -> str:
    """Return what a run has and others have not, with its seed where its recipe was trained with several."""
    what = names.shared([run])
    alike = {seed for origin, seed in origins.values() if run in origins and origin == origins[run][0]}
    return f"{what} seed {origins[run][1]}".strip() if len(alike) > 1 else what


def _grouped(run: str, rivals: Sequence[str], names: Names, origins: Mapping[str, tuple[str, int]]) -> bool:
    """Say whether a run's rivals are the same recipe with the same seed: then a group has a name of its own."""
    return bool(names.shared([run])) and run in origins and all(origins.get(o) == origins[run] for o in rivals)


def recipe_of(run: RunDirectory) -> Mapping[str, Any]:
    """Read the resolved recipe as plain YAML, so that a report needs none of the run's plugins."""
    path = run.path("recipe.yaml")
    try:
        recipe = yaml_source.read_file(str(path), []).plain() if path.exists() else {}
    except yaml_source.Unreadable:
        return {}  # `build` warns of it
    return recipe if isinstance(recipe, dict) else {}


def _flat(recipe: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the recipe's values by dotted key; a list is one value."""
    found: dict[str, Any] = {}
    for key, value in recipe.items():
        name = f"{before}{key}"
        if not before and key in NEVER:
            continue
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def _short_names(keys: Iterable[str], flat: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return each key's short name: its shortest other spelling that the plugin accepts, else its last part."""
    plugins = {(key.partition(".")[0], str(found.get(f"{key.partition('.')[0]}.plugin"))) for found in flat.values() for key in found if key.endswith(".plugin")}  # fmt: skip
    aliases: dict[str, str] = {}
    for section, plugin in sorted(plugins):
        for alias, name in _renamed(section, plugin).items():
            key = f"{section}.{name}"
            if len(alias) < len(aliases.get(key, name)):
                aliases[key] = alias
    short = {key: aliases.get(key, key.rpartition(".")[2]) for key in keys}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}


def _renamed(kind: str, plugin: str) -> Mapping[str, str]:
    """Return the other spellings of a plugin's options; none where the plugin is not installed."""
    try:
        options = installed_plugins().resolve(kind, plugin).Options
    except Exception:  # a missing or broken plugin costs a report nothing but short names
        return {}
    return dict(getattr(options, "renamed", {}))


def short_options(kind: str, plugin: str, options: Mapping[str, Any]) -> str:
    """Return the options whose usual short name has one or two letters, as people write them: "lr=0.004 r=16"."""
    aliases = {name: alias for alias, name in _renamed(kind, plugin).items() if len(alias) <= 2}
    found = [f"{aliases[key]}={written(value, VALUE)}" for key, value in options.items() if key in aliases and value is not None]  # fmt: skip
    return " ".join(found)


def _same(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def written(value: Any, cap: int) -> str:
    """Return a recipe's value as a reader needs it: 4e-3 as 0.004, of a path the last part, nothing too long."""
    if value is None or value == "" or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, str):
        is_path = "/" in value and " " not in value and len(value) > cap
        return one_line(visible(PurePosixPath(value).name if is_path else value), cap)
    return one_line(visible(json.dumps(value, ensure_ascii=False, default=str)), cap)
