"""A recipe: one YAML file that says what is trained, how it is measured and by which plugins.

`load_recipe` reads it, merges what it extends and what `--set` changes, checks every key against the
core's and the plugins' models, and reports all mistakes at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..api import Plugin
from ..errors import FtkitError, InputError, Problem, RecipeError
from ..plugins import Plugins, installed_plugins
from ..records import ExportRequest, GenerationConfig
from . import yaml as yaml_source
from .given import take_rows
from .keys import LOADER, DatasetConfig, DatasetKeys, Prompt, RecipeKeys
from .lookalikes import with_lookalikes
from .paths import absolute_path
from .validate import field_names, validate
from .yaml import SET, KeyPath, Node, Unreadable, read_file, read_override, read_value

MAPPING = "recipe"  # the "file" that a recipe given as a mapping stands in
MAX_PATH = 1000  # characters; longer text is no path
# key of the recipe -> kind of the plugins named there
PLUGIN_KEYS = {"backend": "backend", "evaluator": "evaluator", "controls": "backend", "tracking": "tracker"}


Check = Callable[[Node, Sequence[Problem]], list[Problem]]  # looks at the merged tree, beside the problems known so far


# ---------------------------------------------------------------- the recipe


@dataclass(frozen=True)
class PluginRef:
    """A plugin as a recipe names it: its class, its checked options, and the options as written."""

    name: str
    kind: str
    cls: type[Plugin]
    options: BaseModel
    raw: dict[str, Any] = field(compare=False)

    def make(self) -> Any:
        """Return the plugin, ready to use. Raises InputError where its constructor fails."""
        try:
            return self.cls(self.options)
        except FtkitError:
            raise
        except Exception as error:
            raise InputError(f"{self.kind} {self.name!r} cannot be set up: {type(error).__name__}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return what a recipe would say, with every default filled in."""
        return {"plugin": self.name, **self.options.model_dump(mode="json", by_alias=True)}


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read and checked. Verdicts speak of the first evaluator's primary metric."""

    name: str
    seed: int
    dataset: DatasetConfig
    prompt: Prompt
    generation: GenerationConfig
    backend: PluginRef
    evaluators: tuple[PluginRef, ...]
    controls: tuple[PluginRef, ...] = ()
    tracking: tuple[PluginRef, ...] = ()
    export: ExportRequest | None = None
    note: str | None = None
    measure: str = "test"  # the split that is measured, or validation
    source: Path | None = field(default=None, compare=False)
    notes: list[str] = field(default_factory=list, compare=False)
    raw: dict[str, Any] = field(default_factory=dict, compare=False)  # merged, as written; local paths absolute
    root: Node = field(default_factory=lambda: Node({}), compare=False, repr=False)

    def position(self, key: str) -> tuple[str | None, int | None, int | None]:
        """Return file, line and column of `key` ("backend.base_model"), or of what it would stand under."""
        node = self.root.at(int(part) if part.isdecimal() else part for part in key.split("."))
        return node.file, node.line, node.column

    def to_dict(self) -> dict[str, Any]:
        """Return the whole recipe as plain data, every default filled in."""
        dataset = self.dataset.model_dump(mode="json")
        if self.dataset.loader:
            own = self.dataset.loader.options.model_dump(mode="json", by_alias=True)
            dataset |= {key: value for key, value in own.items() if key not in dataset}
        evaluators = [ref.to_dict() for ref in self.evaluators]
        return {
            "name": self.name,
            "note": self.note,
            "seed": self.seed,
            "measure": self.measure,
            "dataset": dataset,
            "prompt": self.prompt.model_dump(mode="json"),
            "backend": self.backend.to_dict(),
            "generation": self.generation.to_dict(),
            "evaluator": evaluators[0] if len(evaluators) == 1 else evaluators,
            "controls": [ref.to_dict() for ref in self.controls],
            "tracking": [ref.to_dict() for ref in self.tracking],
            **({"export": self.export.to_dict()} if self.export else {}),
        }

    def to_yaml(self) -> str:
        """Return the recipe as YAML that stands alone: running it again is the same run."""
        return self.written(self.to_dict())

    @staticmethod
    def written(data: Mapping[str, Any]) -> str:
        """Return what `to_dict` gives as YAML."""
        return "# Resolved by ftkit: nothing is inherited, every default is written out.\n" + yaml_source.write(data)


def load_recipe(
    source: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] = (),
    plugins: Plugins | None = None,
    check_modules: bool = True,
    checks: Sequence[Check] = (),
) -> Recipe:
    """Read a recipe from a file or a mapping, and change it by overrides such as "backend.lora_r=8".

    `check_modules` False accepts plugins whose required modules are missing here: enough to look at a
    run that was made elsewhere. `checks` look further (`data.check`): each gets the merged tree and the problems
    found so far. Raises RecipeError with every mistake at once.
    """
    loader = _Loader(plugins if plugins is not None else installed_plugins(), check_modules)
    if isinstance(source, Mapping):
        source, loader.given = take_rows(source)
    try:
        root = loader.merged(source, overrides)
    except Unreadable as error:
        raise RecipeError(with_lookalikes([*loader.problems, error.problem])) from None
    path = None if isinstance(source, Mapping) else Path(source).absolute()
    recipe = loader.checked(root, path)
    for check in checks:
        loader.problems += check(root, loader.problems)
    if recipe is None or loader.problems:
        ordered = sorted(loader.problems, key=lambda p: (p.file or "", p.line or 0, p.column or 0))
        raise RecipeError(with_lookalikes(ordered))
    return recipe


def make_plugin(kind: str, name: str, options: Sequence[str] = (), plugins: Plugins | None = None) -> Any:
    """Return a plugin made outside of any recipe, from options such as "language=en" (`ftkit score`)."""
    loader = _Loader(plugins if plugins is not None else installed_plugins(), check_modules=True)
    ref = loader.lone(kind, name, options)
    if ref is None or loader.problems:
        raise RecipeError(loader.problems)
    return ref.make()


class _Loader:
    """Collects the problems and notes of one `load_recipe`."""

    def __init__(self, plugins: Plugins, check_modules: bool) -> None:
        self.plugins, self.check_modules = plugins, check_modules
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.given: Any = None  # rows that the recipe held itself

    # ---- files, extends and --set become one tree of nodes

    def merged(self, source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str]) -> Node:
        if isinstance(source, Mapping):
            root = self._layer(read_value(source, self.problems, Node(None, MAPPING)), os.getcwd(), [])
        else:
            root = self._file(os.fspath(source), [])
        changes = Node({}, SET)
        for text in overrides:
            try:
                keys, value = read_override(text, self.problems)
                changes = _merge(changes, _nested(keys, value))
            except Unreadable as error:
                self.problems.append(error.problem)
        if "extends" in changes.value:
            self.problems.append(changes.problem("`extends` cannot be changed by --set", ("extends",)))
        return self._extend(root, absolute_path(changes, os.getcwd()))

    def _file(self, path: str, chain: list[str]) -> Node:
        node = read_file(path, self.problems)
        return self._layer(node, os.path.dirname(os.path.abspath(path)), [*chain, path], path)

    def _layer(self, node: Node, folder: str, chain: list[str], path: str = "") -> Node:
        """Return the node merged over what it extends; its paths are relative to `folder`."""
        if not isinstance(node.value, dict):
            raise Unreadable(node.problem("a recipe is a mapping of keys", hint="such as `name: my-run`"))
        entries = dict(node.value)
        base = entries.pop("extends", None)
        node = absolute_path(replace(node, value=entries), folder)
        if base is None or base.value is None:
            return node
        if not isinstance(base.value, str):
            raise Unreadable(base.problem("`extends` must be the path of one recipe", ("extends",)))
        target = os.path.normpath(os.path.join(os.path.dirname(path) if path else folder, base.value))
        if not os.path.exists(target):
            hint = yaml_source.nearest_file(target)
            raise Unreadable(base.problem(f"`extends`: there is no file {target}", ("extends",), hint))
        loop = [i for i, known in enumerate(chain) if os.path.realpath(known) == os.path.realpath(target)]
        if loop:
            names = " -> ".join([*chain[loop[0] :], target])
            raise Unreadable(base.problem(f"`extends` goes in a circle: {names}", ("extends",)))
        return self._extend(self._file(target, chain), node)

    def _extend(self, parent: Node, child: Node) -> Node:
        """Return `child` merged over `parent`, without inherited options that a changed plugin does not know."""
        parent = replace(parent, value=dict(parent.value))
        for key in ("dataset", "backend", "evaluator"):
            old, new = (_spelled_out(key, side.value.get(key)) for side in (parent, child))
            if old and new:
                child = replace(child, value={**child.value, key: new})
                parent.value[key] = self._fitting(key, old, new)
        return _merge(parent, child)

    def _fitting(self, key: str, old: Node, new: Node) -> Node:
        named_by = "path" if key == "dataset" else "plugin"
        before, after = (text_at(node, named_by) for node in (old, new))
        if key == "dataset" and after is None and new.below(named_by) is not None:
            after = "a list of files"
        if after is None or after == before:
            return old
        known = self._keys_of(key, after)
        dropped = [k for k in old.value if known is not None and k not in known]
        if dropped:
            names = ", ".join(f"`{k}`" for k in dropped)
            message = f"inherited from {old.file} and dropped, because {after!r} does not know it: {names}"
            self.notes.append(str(new.at((named_by,)).problem(message, (key, named_by), level="note")))
        return replace(old, value={k: v for k, v in old.value.items() if k not in dropped})

    def _keys_of(self, key: str, name: str) -> set[str] | None:
        """Return the keys that may stand beside `plugin: NAME` (or `path: NAME`); None where the plugin is unknown."""
        own = set(DatasetKeys.model_fields) if key == "dataset" else {"plugin"}
        if key == "dataset" and not name.startswith(LOADER):
            return own
        try:
            entry = self.plugins.find(PLUGIN_KEYS.get(key, "dataset"), name.removeprefix(LOADER))
        except InputError:
            return None
        return own | set(field_names(entry.cls.Options))

    def lone(self, kind: str, name: str, options: Sequence[str]) -> PluginRef | None:
        root = Node({}, SET)
        for text in options:
            try:
                root = _merge(root, _nested(*read_override(text, self.problems)))
            except Unreadable as error:
                self.problems.append(error.problem)
        return self._ref(kind, Node(name), name, root, ())

    # ---- the tree becomes a Recipe

    def checked(self, root: Node, source: Path | None) -> Recipe | None:
        raw = root.plain()
        # An empty section ("generation:" with nothing under it) is a section left at its defaults.
        root = replace(root, value={k: n for k, n in root.value.items() if n.value is not None or n.refused})
        core, loader = self._without_loader(root)
        core = replace(core, value={**{key: Node(None) for key in self._unnamed(root)}, **core.value})
        keys = validate(RecipeKeys, core, (), self.problems, also=("extends",))
        backends = self._refs(root, "backend", single=True)
        evaluators = self._refs(root, "evaluator")
        controls, tracking = self._refs(root, "controls"), self._refs(root, "tracking")
        if keys is None or self.problems:
            return None
        return Recipe(
            name=keys.name,
            note=keys.note,
            seed=keys.seed,
            measure=keys.measure,
            dataset=DatasetConfig.model_construct(**dict(keys.dataset), loader=loader, given=self.given),
            prompt=keys.prompt,
            generation=keys.generation,
            backend=backends[0],
            evaluators=evaluators,
            controls=controls,
            tracking=tracking,
            export=ExportRequest(**dict(keys.export)) if keys.export else None,
            source=source,
            notes=self.notes,
            raw=raw,
            root=root,
        )

    def _unnamed(self, root: Node) -> list[str]:
        """Return the keys that must name a plugin and are not there, and say so with the plugins there are."""
        missing = [key for key in ("backend", "evaluator") if key not in root.value]
        for key in missing:
            hint = f"write `{key}: {{plugin: NAME}}`; installed: {', '.join(self.plugins.names(PLUGIN_KEYS[key])) or 'none'}"
            self.problems.append(root.problem(f"`{key}` is required", (key,), hint))
        return missing

    def _without_loader(self, root: Node) -> tuple[Node, PluginRef | None]:
        """Take the loader's own options out of `dataset`, and check them."""
        dataset = root.value.get("dataset")
        path = text_at(dataset, "path") if dataset else None
        if dataset is None or path is None or not path.startswith(LOADER):
            return root, None
        core = {k: n for k, n in dataset.value.items() if k in DatasetKeys.model_fields}
        own = {k: n for k, n in dataset.value.items() if k not in core}
        loader = self._ref(
            "dataset", dataset.value["path"], path.removeprefix(LOADER), replace(dataset, value=own), ("dataset",)
        )
        return replace(root, value={**root.value, "dataset": replace(dataset, value=core)}), loader

    def _refs(self, root: Node, key: str, single: bool = False) -> tuple[PluginRef, ...]:
        """Return the plugins named under `key`: one, or a list of them."""
        node = root.value.get(key)
        if node is None:
            return ()  # where the key is required, this is said already
        several = isinstance(node.value, list)
        if several and (single or (key == "evaluator" and not node.value)):
            message = f"`{key}` must be one plugin, not a list" if single else f"`{key}` names no plugin"
            self.problems.append(node.problem(message, (key,)))
            return ()
        items = [(item, (key, i)) for i, item in enumerate(node.value)] if several else [(node, (key,))]
        refs = [self._named(key, item, path) for item, path in items]
        return tuple(ref for ref in refs if ref is not None)

    def _named(self, key: str, node: Node, path: KeyPath) -> PluginRef | None:
        whole = _spelled_out(key, node)
        if node.refused or (whole is not None and whole.at(("plugin",)).refused):
            return None  # its tag is the mistake
        name = text_at(whole, "plugin") if whole else None
        if whole is None or name is None:
            where = ".".join(map(str, path))
            installed = ", ".join(self.plugins.names(PLUGIN_KEYS[key])) or "none"
            message = f"`{where}` must name a plugin: {where}: {{plugin: NAME}}"
            self.problems.append(node.at(("plugin",)).problem(message, path, f"installed: {installed}"))
            return None
        options = replace(whole, value={k: n for k, n in whole.value.items() if k != "plugin"})
        return self._ref(PLUGIN_KEYS[key], whole.value["plugin"], name, options, path)

    def _ref(self, kind: str, named: Node, name: str, options: Node, path: KeyPath) -> PluginRef | None:
        key = (*path, "path" if kind == "dataset" else "plugin")
        try:
            cls = self.plugins.find(kind, name).cls
        except InputError as error:
            self.problems.append(named.problem(error.message, key, error.hint))
            return None
        also = field_names(DatasetKeys) if kind == "dataset" else ("plugin",)
        options = _absolute_options(options, cls)
        built = validate(cls.Options, options, path, self.problems, also, f"{kind} {name!r}")
        if self.check_modules:
            try:
                self.plugins.resolve(kind, name)
            except InputError as error:
                self.problems.append(named.problem(error.message, key, error.hint))
        return None if built is None else PluginRef(name, kind, cls, built, options.plain())


# ---------------------------------------------------------------- trees


def text_at(node: Node, key: str) -> str | None:
    """Return the text at `key` of a mapping, or None."""
    below = node.below(key)
    return below.value if below is not None and isinstance(below.value, str) else None


def _spelled_out(key: str, node: Node | None) -> Node | None:
    """Return `evaluator: NAME` as `evaluator: {plugin: NAME}`; None for what is no mapping."""
    if node is not None and key in PLUGIN_KEYS and isinstance(node.value, str):
        node = replace(node, value={"plugin": node}, size=node.size + 1)
    return node if node is not None and isinstance(node.value, dict) else None


def _nested(keys: Iterable[str], value: Node) -> Node:
    for key in reversed(list(keys)):
        value = replace(value, value={key: value})
    return value


def _merge(parent: Node, child: Node) -> Node:
    """Return `child` over `parent`: mappings are merged, everything else is replaced."""
    if isinstance(parent.value, list) and isinstance(child.value, dict) and child.file == SET:
        items = dict(enumerate(parent.value))
        changes = {int(k): n for k, n in child.value.items() if k.isdecimal() and int(k) in items}
        if len(changes) == len(child.value):  # --set tracking.0.project=x
            merged = {i: _merge(n, changes[i]) if i in changes else n for i, n in items.items()}
            return replace(parent, value=list(merged.values()))
    if not (isinstance(parent.value, dict) and isinstance(child.value, dict)):
        return child
    entries = dict(parent.value)
    for key, node in child.value.items():
        entries[key] = _merge(entries[key], node) if key in entries else node
    return replace(parent if child.file == SET else child, value=entries)


def _absolute_options(options: Node, cls: type[Plugin]) -> Node:
    """Return a plugin's options with the local paths among them made absolute: relative to the recipe that wrote them.

    A path is what starts with ./ or ../ in any option; and, in the options that the plugin lists in `paths`,
    what starts with ~ or exists beside the recipe.
    """
    may_be_path = getattr(cls.Options, "paths", ())
    entries = {key: _absolute(node, key in may_be_path) for key, node in options.value.items()}
    return replace(options, value=entries)


def _absolute(node: Node, may_be_path: bool) -> Node:
    if isinstance(node.value, list):
        return replace(node, value=[_absolute(item, may_be_path) for item in node.value])
    if isinstance(node.value, dict):
        return replace(node, value={key: _absolute(item, may_be_path) for key, item in node.value.items()})
    text = node.value
    if not isinstance(text, str) or "\0" in text or len(text) > MAX_PATH:
        return node
    folder = os.path.dirname(os.path.abspath(node.file)) if node.file not in (None, SET, MAPPING) else os.getcwd()
    there = os.path.normpath(os.path.join(folder, os.path.expanduser(text) if may_be_path else text))
    beside = may_be_path and re.search("[/.]", text) is not None and os.path.exists(there)
    if text.startswith(("./", "../")) or beside or (may_be_path and text.startswith("~")):
        return replace(node, value=there)
    return node
