"""Recipes: the right reading of what is right, and one clear message at its place for what is not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from pydantic import Field, model_validator

from ftkit.api import Backend, DatasetLoader, Evaluator, Options, Requires, Tracker
from ftkit.data.check import check_data
from ftkit.errors import Problem, RecipeError
from ftkit.hookspecs import hookimpl
from ftkit.plugins import Plugins, PluginSource
from ftkit.recipe.load import Recipe, load_recipe, make_plugin
from ftkit.recipe.schema import recipe_schema
from ftkit.recipe.yaml import MAX_BYTES, scalar


class Launch(Options):
    processes: int | Literal["auto"] = 1


class SmallOptions(Options):
    base_model: str
    lora_r: int = Field(16, ge=1, description="rank of the adapter")
    learning_rate: float = 2e-4
    packing: bool = False
    layers: tuple[str, ...] = ("q",)
    kind: Literal["cosine", "linear"] = "cosine"
    launch: Launch = Launch()
    renamed = {"cutoff_len": "sequence_len", "model_name_or_path": "base_model"}  # noqa: RUF012

    @model_validator(mode="before")
    @classmethod
    def _any(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("base_model") == "explode":
            raise KeyError("a bug in a plugin")
        return value


class OtherOptions(Options):
    base_model: str = "x"


class WordsOptions(Options):
    language: str = "en"


class FilesOptions(Options):
    model: str = "hub/id"
    word: str = "plain"
    others: tuple[str, ...] = ()
    paths = ("model",)


def plugin(base: type, plugin_name: str, options: type[Options] = Options, modules: tuple[str, ...] = ()) -> type:
    body: dict[str, Any] = dict.fromkeys(base.__dict__.get("__abstractmethods__", ()), lambda self: None)
    body |= {"name": plugin_name, "Options": options, "requires": Requires(modules, "ftkit[far]"), "primary": "m"}
    return type(plugin_name, (base,), body)


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    backends = [
        plugin(Backend, "small", SmallOptions),
        plugin(Backend, "other", OtherOptions),
        plugin(Backend, "files", FilesOptions),
        plugin(Backend, "far", Options, ("no_such_module_xyz",)),
    ]
    module = SimpleNamespace(
        ftkit_backends=hookimpl(lambda: backends),
        ftkit_evaluators=hookimpl(lambda: [plugin(Evaluator, "words", WordsOptions)]),
        ftkit_datasets=hookimpl(lambda: [plugin(DatasetLoader, "chats", type("O", (WordsOptions,), {}))]),
        ftkit_trackers=hookimpl(lambda: [plugin(Tracker, "diary", WordsOptions)]),
    )
    found = Plugins()
    found.register(module, PluginSource("fake", "fake", "ftkit-fake", "1.0"))
    assert not found.failures
    return found


GOOD = """\
name: demo
dataset:
  path: some/corpus
prompt:
  instruction: |
    Sum up.
    Be brief.
backend:
  plugin: small
  base_model: tiny
  learning_rate: 2e-4
evaluator: words
"""


@pytest.fixture
def load(tmp_path: Path, plugins: Plugins) -> Any:
    def load(text: str | bytes, *overrides: str, **files: str) -> Recipe:
        for name, content in files.items():
            (tmp_path / f"{name}.yaml").write_text(content)
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(path, overrides, plugins)

    return load


@pytest.fixture
def fail(load: Any) -> Any:
    def fail(text: str | bytes, *overrides: str, **files: str) -> list[Problem]:
        with pytest.raises(RecipeError) as caught:
            load(text, *overrides, **files)
        return caught.value.problems

    return fail


def one(problems: list[Problem]) -> Problem:
    assert len(problems) == 1, [str(p) for p in problems]
    return problems[0]


# ---------------------------------------------------------------- right recipes


def test_good_recipe(load: Any) -> None:
    recipe = load(GOOD)
    assert (recipe.name, recipe.seed, recipe.dataset.path) == ("demo", 42, "some/corpus")
    assert recipe.backend.options.learning_rate == 2e-4
    assert recipe.backend.raw == {"base_model": "tiny", "learning_rate": 2e-4}
    assert recipe.evaluators[0].make().options.language == "en"
    assert dict(recipe.dataset.splits) == {"train": "all", "validation": "all", "test": "all"}
    assert (recipe.dataset.columns.input, recipe.dataset.columns.target) == ("input", "target")
    assert recipe.prompt.render("a {input} b") == "Sum up.\nBe brief.\n\na {input} b"
    assert recipe.position("backend.base_model")[1:] == (10, 3)
    assert recipe.position("backend.lora_r")[1:] == (8, 1)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_encodings_and_line_ends(load: Any, encoding: str, newline: str) -> None:
    assert load(GOOD.replace("\n", newline).encode(encoding)).to_dict() == load(GOOD).to_dict()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("2e-4", 2e-4), (".5e3", 500.0), ("0o17", 15), ("0x1F", 31), ("0123", 123), ("-7", -7)],
        *[("~", None), ("", None), ("True", True), ("no", "no"), ("1_000", "1_000"), ("2020-01-01", "2020-01-01")],
        *[("1:30", "1:30"), (".inf", ".inf"), ("1e999", "1e999"), ("9" * 5000, "9" * 5000), ("<<", "<<")],
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    assert scalar(text) == value and type(scalar(text)) is type(value)


def test_resolved_yaml_is_the_same_run(load: Any, plugins: Plugins, tmp_path: Path) -> None:
    text = GOOD.replace("evaluator: words", "evaluator: [words, {plugin: words, language: 'no'}]")
    text += "tracking: [{plugin: diary, language: '1e5'}]\ncontrols: [other]\n"
    text = text.replace("some/corpus", "rows.jsonl\n  splits: {train: 0.5, test: 20}")
    recipe = load(
        text, 'prompt.system="\\e tab\\t nul\\0 \\u2028 😀"', 'prompt.template="{input} # x: {instruction}\\t"'
    )
    elsewhere = tmp_path / "deep" / "er"
    elsewhere.mkdir(parents=True)
    (elsewhere / "resolved.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    again = load_recipe(elsewhere / "resolved.yaml", plugins=plugins)
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()
    assert again.dataset.path == str(tmp_path / "rows.jsonl")
    assert "|-\n" in recipe.to_yaml()


def test_mapping_and_loader(plugins: Plugins) -> None:
    source = {
        "name": "m",
        "dataset": {"path": "loader:chats", "language": "ja", "columns": {"targets": "all"}},
        "backend": {"plugin": "other"},
        "evaluator": ["words"],
    }
    recipe = load_recipe(source, plugins=plugins)
    assert recipe.source is None
    assert recipe.dataset.loader.options.language == "ja"
    assert recipe.dataset.columns.target is None
    assert load_recipe(recipe.to_dict(), plugins=plugins) == recipe
    source["dataset"] = {"path": "loader:chats", "langage": "ja"}
    with pytest.raises(RecipeError, match="did you mean `language`"):
        load_recipe(source, plugins=plugins)
    cyclic: dict[str, Any] = {}
    cyclic["a"] = cyclic["b"] = cyclic
    with pytest.raises(RecipeError, match="nested deeper"):
        load_recipe(cyclic, plugins=plugins)


def test_a_plugin_without_a_recipe(plugins: Plugins) -> None:
    assert make_plugin("evaluator", "words", ["language=ja"], plugins).options.language == "ja"
    for name, option, message in [("wrods", "language=ja", "did you mean"), ("words", "langage=ja", "did you mean")]:
        with pytest.raises(RecipeError, match=message):
            make_plugin("evaluator", name, [option], plugins)


def test_paths_are_relative_to_where_they_were_written(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "base.yaml").write_text(GOOD.replace("some/corpus", "./data.csv"))
    child = "extends: sub/base.yaml\n"
    assert load(child).dataset.path == str(tmp_path / "sub" / "data.csv")
    monkeypatch.chdir(tmp_path / "sub")
    assert load(child, "dataset.path=here.jsonl").dataset.path == str(tmp_path / "sub" / "here.jsonl")
    (tmp_path / "some" / "corpus").mkdir(parents=True)
    assert load(GOOD).dataset.path == str(tmp_path / "some" / "corpus")
    assert load(GOOD, "dataset.path=hub/id").dataset.path == "hub/id"


def test_paths_in_the_options_of_plugins(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative to the file that wrote them, wherever the command is started; what is no path is left alone."""
    sub, elsewhere = tmp_path / "sub", tmp_path / "elsewhere"
    (sub / "hub").mkdir(parents=True)
    (sub / "hub" / "id").write_text("")
    (sub / "plain").write_text("")
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    text = GOOD.split("backend:")[0] + "backend: {plugin: files, model: hub/id, word: plain, others: [../x, y/z, .]}\n"
    (sub / "base.yaml").write_text(text + "evaluator: words\n")
    o = load("extends: sub/base.yaml\n").backend.options
    assert (o.model, o.word, o.others) == (str(sub / "hub" / "id"), "plain", (str(tmp_path / "x"), "y/z", "."))
    assert load("extends: sub/base.yaml\n", "backend.model=hub/other").backend.options.model == "hub/other"
    assert load("extends: sub/base.yaml\n", "backend.word=./a").backend.options.word == str(elsewhere / "a")
    home = load("extends: sub/base.yaml\nbackend: {model: ~/m, word: ~/m}\n").backend.options
    assert (home.model, home.word) == (str(Path("~/m").expanduser()), "~/m")
    package = load("extends: sub/base.yaml\nbackend: {model: 'package:a/b'}\n")
    assert package.backend.options.model == "package:a/b"
    again = tmp_path / "runs"
    again.mkdir()
    (again / "recipe.yaml").write_text(load("extends: sub/base.yaml\n").to_yaml())
    assert load("extends: runs/recipe.yaml\n").backend.options == o


# ---------------------------------------------------------------- extends and --set


def test_extends_and_set(load: Any) -> None:
    child = "extends: base.yaml\nname: child\nbackend: {lora_r: 8, launch: {processes: auto}}\n"
    recipe = load(child, "backend.lora_r=4", "evaluator.language=fr", base=GOOD + "tracking: [diary]\n")
    assert (recipe.name, recipe.backend.options.lora_r, recipe.backend.options.base_model) == ("child", 4, "tiny")
    assert recipe.evaluators[0].options.language == "fr"
    assert recipe.backend.options.launch.processes == "auto"
    assert "extends" not in recipe.raw
    assert load(GOOD + "tracking: [{plugin: diary}]\n", "tracking.0.language=de").tracking[0].options.language == "de"


def test_changed_plugin_drops_what_was_inherited_only(load: Any, fail: Any) -> None:
    recipe = load("extends: base.yaml\nbackend: {plugin: other}\n", base=GOOD)
    assert recipe.backend.options.base_model == "tiny"
    assert "`learning_rate`" in recipe.notes[0] and "recipe.yaml:2" in recipe.notes[0]
    assert load(GOOD, "backend.plugin=other").backend.name == "other"
    problem = one(fail("extends: base.yaml\nbackend:\n  plugin: other\n  lora_r: 8\n", base=GOOD))
    assert (problem.line, problem.column, problem.key) == (4, 3, "backend.lora_r")
    loader = GOOD.replace("path: some/corpus", "path: loader:chats\n  language: ja")
    assert load(loader, "dataset.path=hub/id").dataset.loader is None


def test_positions_point_at_the_file_that_wrote_the_key(fail: Any, tmp_path: Path) -> None:
    problems = fail("extends: base.yaml\nseed: x\n", "backend.lora_rr=3", base=GOOD.replace("tiny", "3"))
    assert [(p.file, p.line) for p in problems] == [
        ("--set", None),
        (str(tmp_path / "base.yaml"), 10),
        (str(tmp_path / "recipe.yaml"), 2),
    ]
    assert problems[0].hint == "did you mean `backend.lora_r`?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: recipe.yaml", "circle: "),
        ("extends: a.yaml", "recipe.yaml -> "),
        ("extends: gone.yaml", "there is no file"),
        ("extends: [a.yaml]", "must be the path of one recipe"),
        ('extends: "a\\0b"', "there is no file"),
    ],
)
def test_extends_goes_wrong(fail: Any, text: str, message: str) -> None:
    problem = one(fail(text, a="extends: recipe.yaml"))
    assert message in problem.message
    assert problem.line == 1


@pytest.mark.parametrize(
    "override", ["backend", "=3", "a..b=1", "backend.lora_r=[", "extends=x", "prompt.template={input}"]
)
def test_set_goes_wrong(fail: Any, override: str) -> None:
    assert all((p.file, p.line) == ("--set", None) for p in fail(GOOD, override))


def test_a_problem_of_set_names_the_whole_key(load: Any, fail: Any) -> None:
    problem = one(fail(GOOD, "dataset.splits.tets=3"))
    said = "--set dataset.splits.tets: unknown key `tets`\n  did you mean `dataset.splits.test`?"
    assert (str(problem), problem.file) == (said, "--set")
    assert str(one(fail(GOOD, "backend.cutoff_len=3"))).endswith(
        "`cutoff_len`: in ftkit this is `backend.sequence_len`"
    )
    assert str(one(fail(GOOD, "backend.lora_r=0"))) == "--set: `backend.lora_r` must be at least 1, not 0"
    assert str(one(fail(GOOD, "evaluator=wrods"))).startswith("--set evaluator.plugin: no ")
    (note,) = load(GOOD, "backend.plugin=other").notes
    assert note.startswith("--set backend.plugin: inherited from ")


# ---------------------------------------------------------------- wrong recipes


def test_all_mistakes_at_once(fail: Any) -> None:
    text = """\
nam: demo
seed: "5"
dataset: {path: x, drop_leaked: no, splits: {train: 1_000}, columns: {inptu: a}}
backend:
  plugin: small
  cutoff_len: 512
  lora_r: 0
  packing: yes
  kind: cosin
  launch: {processes: many, x: 1}
generation: {max_new_tokens: 12.0}
evaluator: wrods
tracking: [{plugin: diary, language: 012}]
"""
    found = {p.key: p for p in fail(text)}
    expected = {
        "nam": "did you mean `name`?",
        "name": None,
        "seed": "in quotes it is text: write 5",
        "dataset.drop_leaked": "YAML 1.2 reads no as text: write false",
        "dataset.splits.train": "YAML 1.2 reads this as text: write 1000",
        "dataset.columns.inptu": "did you mean `input`?",
        "backend.cutoff_len": None,
        "backend.base_model": None,
        "backend.lora_r": None,
        "backend.packing": "YAML 1.2 reads yes as text: write true",
        "backend.kind": "did you mean cosine?",
        "backend.launch.processes": None,
        "backend.launch.x": "known here: processes",
        "generation.max_new_tokens": "write 12",
        "evaluator.plugin": "did you mean 'words'?\n  installed: words",
        "tracking.0.language": 'to mean text, put it in quotes: "012"',
    }
    assert {key: p.hint for key, p in found.items()} == expected
    assert found["backend.cutoff_len"].message == "`cutoff_len`: in ftkit this is `sequence_len`"
    assert found["backend.lora_r"].message == "`backend.lora_r` must be at least 1, not 0"
    assert found["backend.launch.processes"].message.endswith("must be a whole number or 'auto', not 'many'")
    assert (found["backend.lora_r"].line, found["backend.lora_r"].column) == (7, 3)


def test_a_missing_column_is_told_with_the_other_mistakes(tmp_path: Path, plugins: Plugins) -> None:
    (tmp_path / "train.jsonl").write_text('{"dialogue": "a", "summary": "b"}\n' * 3)
    (tmp_path / "test.jsonl").write_text('{"dialogue": "a"}\n' * 3)
    path = tmp_path / "recipe.yaml"
    text = GOOD.replace("path: some/corpus", "path: .\n  columns:\n    input: dialog\n    target: summary")
    path.write_text(text.replace("learning_rate: 2e-4", "learning_rat: 2"))

    def mistakes(*overrides: str) -> dict[str | None, tuple[int | None, str, str | None]]:
        with pytest.raises(RecipeError) as caught:
            load_recipe(path, overrides, plugins, checks=[check_data])
        assert len({p.key for p in caught.value.problems}) == len(caught.value.problems)
        return {p.key: (p.line, p.message, p.hint) for p in caught.value.problems}

    found = mistakes()
    have = "they have: dialogue"
    assert found["backend.learning_rat"][0] == 14
    assert found["dataset.columns.input"] == (
        5,
        "dataset.columns.input: the rows have no column 'dialog'",
        f"did you mean `dialogue`?\n  {have}, summary",
    )
    assert found["dataset.columns.target"][1].endswith("the test rows have no column 'summary'")
    assert found["dataset.columns.target"][2] == have
    assert "no validation split (it has test, train)" in found["dataset.splits.validation"][1]
    assert set(found) == {
        "backend.learning_rat", "dataset.columns.input", "dataset.columns.target", "dataset.splits.validation",
    }  # fmt: skip
    # what is wrong with the section itself does not hide what is wrong with the rest of it
    found = mistakes("dataset.splits.test=-1", "dataset.columns.input=dialogue")
    assert set(found) == {"backend.learning_rat", "dataset.splits.test", "dataset.columns.target"}
    found = mistakes("dataset.path=./tarin.jsonl")
    assert set(found) == {"backend.learning_rat", "dataset.path"}
    assert mistakes("dataset.path=some/corpus", "dataset.nam=x").keys() == {"backend.learning_rat", "dataset.nam"}


def test_local_data_that_are_right_add_no_mistake(tmp_path: Path, plugins: Plugins) -> None:
    (tmp_path / "rows.csv").write_text("input,target\na,b\n")
    keys = {"name": "x", "dataset": {"path": str(tmp_path / "rows.csv"), "splits": {"test": 1, "validation": 0}}}
    keys |= {"backend": {"plugin": "other"}, "evaluator": "words"}
    assert load_recipe(keys, plugins=plugins, checks=[check_data]).name == "x"
    (tmp_path / "rows.csv").unlink()
    assert load_recipe(keys, plugins=plugins).name == "x"  # a run is looked at after its data have gone
    with pytest.raises(RecipeError, match="there is no"):
        load_recipe(keys, plugins=plugins, checks=[check_data])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: demo", "name: ../x", "a name is up to 80"),
        ("name: demo", "", "`name` is required"),
        ("backend:", "backend:\n  plugin: small", "written twice"),
        ("plugin: small", "plugin: 3", "must name a plugin"),
        ("plugin: small", "plugin: far\n  x: 1", "unknown key `x`"),
        ("evaluator: words", "evaluator: []", "names no plugin"),
        ("evaluator: words", "evaluator: [words, 3]", "must name a plugin"),
        ("evaluator: words", "evaluator: !!str words", "the tag"),
        ("evaluator: words", "evaluator: !!python/object:os.system words", "the tag"),
        ("evaluator: words", "evaluator: words\n<<: {a: 1}", "unknown key `<<`"),
        ("evaluator: words", "evaluator: words\n---\na: 1", "second document"),
        ("evaluator: words", "evaluator:\n\twords", "a tab"),
        ("evaluator: words", "evaluator: a: b", "a second `: `"),
        ("evaluator: words", "evaluator: words\nseed: *x", "no anchor"),
        ("evaluator: words", "evaluator: &a [*a]", "no anchor"),
        ("evaluator: words", "evaluator: " + "[" * 5000, "nested deeper"),
        ("evaluator: words", 'evaluator: words\nname2: "\\ud800"', "lone surrogate"),
        ("evaluator: words", "evaluator: words\n\x1b: 1", "U+001B"),
        ("tiny", "explode", "KeyError"),
        ("tiny", "~", "must be text, not empty (null)"),
        ("some/corpus", "x\n  splits: {test: 1.5}", "a share of the rows"),
        ("some/corpus", "x\n  columns: {target: a, targets: b}", "not both"),
        ("some/corpus", "x\n  columns: {input: a, target: a}", "`input` and `target` are both 'a'"),
        ("some/corpus", "x\n  columns: {input: target}", "`input` and `target` are both 'target'"),
        ("some/corpus", "x\n  columns: {input: a, targets: a}", "`input` and `targets` are both 'a'"),
        ("some/corpus", "file:///etc/passwd", "a URL is not read"),
        ("some/corpus", "https://example.org/rows.jsonl", "a URL is not read"),
        ("  plugin: small", "  - small", "a key stands among list items"),
        ("  learning_rate: 2e-4", "  - small", "a list item stands among keys"),
        ("  learning_rate: 2e-4", " learning_rate: 2e-4", "indented unlike those above"),
        ("evaluator: words", "evaluator: {plugin: words", "the `}` of the `{` that was opened on line 12 is missing"),
        ("evaluator: words", "evaluator: [words\nseed: 3", "the `]` of the `[` that was opened on line 12 is missing"),
        ("evaluator: words", "evaluator: {plugin: words language: en}", "a `,` or the `}` is missing before this"),
        ("evaluator: words", 'evaluator: "\\z"', "unknown escape"),
        ("evaluator: words", "evaluator: 'words\nseed: 3", "quotes that starts on line 12 does not end"),
        ("prompt:", "prompt:\n  template: 'x'", "has no {input}"),
        ("prompt:", "prompt:\n  template: '{input}'", "instruction would be lost"),
        ("prompt:", 'prompt:\n  template: \'{"a": {"b": "{input}"}}\'', "do not pair up"),
        ("prompt:", "generation: {samples: 3}\nprompt:", "needs a `temperature`"),
    ],
)
def test_one_clear_message(fail: Any, old: str, new: str, message: str) -> None:
    problems = fail(GOOD.replace(old, new, 1))
    assert message in "\n".join(p.message + (p.hint or "") for p in problems)
    assert all("Input should" not in str(p) and "\x1b" not in str(p) for p in problems)
    assert all(p.line for p in problems), [str(p) for p in problems]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: demo", "name: demo\nseed: !!python/object:x"),
        ("name: demo", "name: demo\nseed: !!python/object:x 3"),
        ("name: demo", "name: demo\ngeneration: !thing [1]"),
        ("plugin: small", "plugin: !!python/name:os.system"),
        ("evaluator: words", "evaluator: !x wrods"),
        ("evaluator: words", "evaluator: !x"),
    ],
)
def test_a_tag_is_told_alone(fail: Any, old: str, new: str) -> None:
    assert "the tag `" in one(fail(GOOD.replace(old, new))).message


def test_a_file_is_suggested_only_where_its_own_name_is_near(fail: Any) -> None:
    files = {"others": GOOD, "there-is": GOOD, "base": GOOD}
    assert one(fail("extends: nothere.yaml", **files)).hint is None
    assert str(one(fail("extends: bases.yaml", **files)).hint).endswith("base.yaml?")


def test_a_required_plugin_is_asked_for_by_name(fail: Any) -> None:
    found = {p.key: p for p in fail("name: x\ndataset: {path: some/corpus}\nbackend:\n")}
    assert set(found) == {"backend", "evaluator"}
    assert found["backend"].message == "`backend` is required"
    assert found["backend"].hint == "write `backend: {plugin: NAME}`; installed: far, files, other, small"
    assert found["evaluator"].hint == "write `evaluator: {plugin: NAME}`; installed: words"


def test_missing_module(fail: Any, plugins: Plugins) -> None:
    problem = one(fail(GOOD.split("backend:")[0] + "backend: far\nevaluator: words\n"))
    assert "no_such_module_xyz" in problem.message and problem.hint == "pip install 'ftkit[far]'"
    source = {"name": "x", "dataset": {"path": "x/y"}, "backend": "far", "evaluator": "words"}
    assert load_recipe(source, plugins=plugins, check_modules=False).backend.name == "far"


def test_anchors_are_read_and_bombs_are_not(load: Any, fail: Any) -> None:
    recipe = load(
        GOOD.replace("base_model: tiny", "base_model: &m tiny") + "controls: [{plugin: other, base_model: *m}]"
    )
    assert recipe.controls[0].options.base_model == "tiny"
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    started = time.perf_counter()
    assert "aliases" in one(fail(bomb)).message
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"# nothing\n", "empty"),
        (b"just text", "a recipe is a mapping"),
        (b"- a", "a recipe is a mapping"),
        (b"name: \xff", "byte 0xff"),
        (b"n\0a\0m\0e\0:\0", "U+0000"),
        (b"a: 1\n" * (MAX_BYTES // 4), "too large"),
        (b"".join(b"k%d: 1\n" % i for i in range(20_000)), "more than 5000 values"),
    ],
)
def test_files_that_are_no_recipe(fail: Any, data: bytes, message: str) -> None:
    assert message in one(fail(data)).message


def test_no_file(tmp_path: Path, plugins: Plugins) -> None:
    (tmp_path / "samsum.yaml").write_text(GOOD)
    for path, message in [
        (tmp_path / "samsun.yaml", "did you mean .*samsum.yaml"),
        (tmp_path, "recipes in it: samsum.yaml"),
        (Path("/dev/null"), "not a regular file"),
        ("a\0b", "cannot be read"),
    ]:
        with pytest.raises(RecipeError, match=message):
            load_recipe(path, plugins=plugins)


def test_prompt_never_reads_braces_in_data(load: Any) -> None:
    recipe = load(GOOD, 'prompt.template=> {{"x"}} {input}|{instruction}', "prompt.instruction=say {input}")
    assert recipe.prompt.render("{instruction} {{}}") == '> {"x"} {instruction} {{}}|say {input}'


# ---------------------------------------------------------------- schema, speed


def test_schema(load: Any, plugins: Plugins) -> None:
    schema = recipe_schema(plugins)
    assert schema["$defs"]["backend-small"]["properties"]["lora_r"]["description"] == "rank of the adapter"
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    good = load(GOOD)
    for right in (good.raw, good.to_dict(), {"extends": "x.yaml", "backend": {"lora_r": 3}}):
        assert not list(validator.iter_errors(right))
    loader = {**good.raw, "dataset": {"path": "loader:chats", "language": "ja"}}
    assert not list(validator.iter_errors(loader))
    for wrong in (
        {**good.raw, "nam": 1},
        {**good.raw, "backend": {"plugin": "small"}},
        {**good.raw, "backend": {"plugin": "small", "base_model": "x", "lora_rr": 3}},
        {**good.raw, "dataset": {"path": "x", "language": "ja"}},
        {"name": "x"},
    ):
        assert list(validator.iter_errors(wrong)), wrong


def test_reading_a_recipe_imports_nothing_heavy(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("nam: x\n")
    heavy = ("torch", "transformers", "datasets", "numpy", "scipy", "jinja2")
    code = (
        "import sys\nfrom ftkit.errors import RecipeError\nfrom ftkit.recipe.load import load_recipe\n"
        f"try: load_recipe({str(path)!r})\n"
        "except RecipeError: pass\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
