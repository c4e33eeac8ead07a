"""The JSON Schema of a recipe, with the options of every installed plugin: what editors complete from."""

from __future__ import annotations

from typing import Any

from ..plugins import PluginEntry, Plugins
from .keys import LOADER, DatasetKeys, RecipeKeys
from .load import PLUGIN_KEYS

DEFS = "#/$defs/"


def recipe_schema(plugins: Plugins) -> dict[str, Any]:
    """Return JSON Schema 2020-12. A recipe that `extends` another may leave out what it inherits."""
    schema = RecipeKeys.model_json_schema(ref_template=DEFS + "{model}")
    defs: dict[str, Any] = schema["$defs"]
    properties: dict[str, Any] = schema["properties"]
    complete: dict[str, Any] = {"dataset": {"required": ["path"]}}  # what holds where nothing is inherited
    for key, kind in PLUGIN_KEYS.items():
        choices, rules = _plugin_choices(plugins, kind, defs)
        one = {"anyOf": [*choices, {"type": "object", "not": {"required": ["plugin"]}}]}
        defs[f"any-{kind}"] = one
        choice: dict[str, Any] = {"$ref": f"{DEFS}any-{kind}"}
        if key != "backend":
            choice = {"anyOf": [choice, {"type": "array", "items": choice}]}
        properties[key] = {"description": properties[key].get("description", ""), **choice}
        complete[key] = {"allOf": rules} if key == "backend" else {}
    defs["DatasetKeys"] = {"anyOf": _dataset_choices(plugins, defs)}
    properties["extends"] = {"type": "string", "description": "another recipe that this one changes, beside this file"}
    required = schema.pop("required")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "ftkit recipe",
        "if": {"not": {"required": ["extends"]}},
        "then": {"required": required, "properties": complete},
    }


def _options(entry: PluginEntry, defs: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a plugin's options; what it refers to goes to `defs` under names of its own."""
    prefix = f"{entry.kind}-{entry.name}"
    try:
        schema = entry.cls.Options.model_json_schema(ref_template=f"{DEFS}{prefix}-{{model}}")
    except Exception:  # a third-party field that has no JSON Schema: the rest of the recipe keeps its own
        return {"type": "object", "properties": {}}
    defs |= {f"{prefix}-{name}": part for name, part in schema.pop("$defs", {}).items()}
    return schema


def _plugin_choices(plugins: Plugins, kind: str, defs: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return what may stand for a plugin of `kind`, and what each one requires beside its name."""
    entries = [entry for entry in plugins.all_entries() if entry.kind == kind]
    names = [entry.name for entry in entries]
    rules: list[Any] = [{"if": {"type": "object"}, "then": {"required": ["plugin"]}}]
    for entry in entries:
        schema = _options(entry, defs)
        named = {"const": entry.name, "description": entry.cls.summary}
        needs = schema.pop("required", [])
        schema |= {"title": entry.name, "properties": {"plugin": named, **schema.get("properties", {})}}
        defs[f"{kind}-{entry.name}"] = schema | {"required": ["plugin"]}
        if needs:
            this = {"type": "object", "properties": {"plugin": {"const": entry.name}}, "required": ["plugin"]}
            rules.append({"if": this, "then": {"required": needs}})
    return [{"enum": names}, *({"$ref": f"{DEFS}{kind}-{name}"} for name in names)], rules


def _dataset_choices(plugins: Plugins, defs: dict[str, Any]) -> list[Any]:
    """Return the dataset section as it is for files and hub ids, and with each loader's options."""
    plain = DatasetKeys.model_json_schema(ref_template=DEFS + "{model}")
    plain.pop("$defs")
    plain.pop("required")
    path = plain["properties"]["path"]
    choices = [
        plain
        | {"properties": {**plain["properties"], "path": {**path, "not": {"type": "string", "pattern": f"^{LOADER}"}}}}
    ]
    for entry in plugins.all_entries():
        if entry.kind == "dataset":
            own = _options(entry, defs).get("properties", {})
            named = {"const": LOADER + entry.name, "description": entry.cls.summary}
            merged = {**own, **plain["properties"], "path": named}
            choices.append(plain | {"title": named["const"], "properties": merged, "required": ["path"]})
    return choices
