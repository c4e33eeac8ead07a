"""Whatever bytes are given as a recipe: a Recipe or a RecipeError, soon, and never anything else.

Ten thousand mutations of one recipe (about 30 s of one core), the same ones each time: FTKIT_FUZZ=100000
tries more, FTKIT_FUZZ_SEED=7 tries others. Hypothesis tries what is no recipe at all.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftkit.api import Backend, DatasetLoader, Evaluator, Options, Tracker
from ftkit.errors import RecipeError
from ftkit.hookspecs import hookimpl
from ftkit.plugins import Plugins, PluginSource
from ftkit.recipe.load import load_recipe

COUNT = int(os.environ.get("FTKIT_FUZZ", "10000"))
SEED = int(os.environ.get("FTKIT_FUZZ_SEED", "2026"))
PARTS = 4  # so that several processes can share the work
SLOWEST = 3.0  # seconds of this process for one recipe

RECIPE = """\
# a comment
name: demo
seed: 42
dataset:
  path: some/corpus
  revision: null
  columns: {input: dialogue, target: summary, meta: [a, b]}
  splits: {train: all, validation: 200, test: 0.1}
  drop_leaked: true
prompt:
  instruction: |
    Sum up.
  template: "{instruction}\\n\\n{input}"
backend: &b
  plugin: small
  base_model: &m tiny
  lora_r: 16
  learning_rate: 2e-4
generation: {max_new_tokens: 128, temperature: 0}
evaluator: [words, {plugin: words, language: *m}]
controls: [*b]
tracking:
  - plugin: diary
    language: 'en'
"""
TOKENS = [
    *(
        "&a ",
        "*a",
        "*b",
        "!!int ",
        "!x ",
        "<<: ",
        "---\n",
        "...\n",
        "%YAML 1.1\n---\n",
        "? ",
        "- ",
        ": ",
        "\t",
        "#",
        "|",
        ">-",
    ),
    *(
        "[",
        "]",
        "{",
        "}",
        ",",
        '"',
        "'",
        "\\ud800",
        "\\UFFFFFFFF",
        "\\x",
        "\0",
        "\x1b",
        "\ufeff",
        "\u2028",
        "\x85",
        "\r",
    ),
    *(
        "~",
        "null",
        "no",
        "true",
        "1_000",
        "1e999",
        ".nan",
        "0x",
        "9" * 5000,
        "[" * 2000,
        "{a: " * 500,
        "x" * 5000,
        "\n" * 500,
    ),
    *(
        "{input}",
        "{{",
        "../",
        "~root",
        "loader:chats",
        "loader:",
        "extends: recipe.yaml\n",
        "extends: .\n",
        "plugin",
        "name",
    ),
    *RECIPE.split(),
    *RECIPE.splitlines(keepends=True),
]


class SmallOptions(Options):
    base_model: str
    lora_r: int = 16
    learning_rate: float = 2e-4


class WordsOptions(Options):
    language: str = "en"


def _plugins() -> Plugins:
    def make(base: type, name: str, options: type[Options]) -> type:
        methods = dict.fromkeys(getattr(base, "__abstractmethods__", ()), print)  # never called: recipes are only read
        return type(name, (base,), {"name": name, "Options": options, "primary": "m", **methods})

    module = SimpleNamespace(
        ftkit_backends=hookimpl(lambda: [make(Backend, "small", SmallOptions)]),
        ftkit_evaluators=hookimpl(lambda: [make(Evaluator, "words", WordsOptions)]),
        ftkit_datasets=hookimpl(lambda: [make(DatasetLoader, "chats", WordsOptions)]),
        ftkit_trackers=hookimpl(lambda: [make(Tracker, "diary", WordsOptions)]),
    )
    plugins = Plugins()
    plugins.register(module, PluginSource("fake", "fake", "ftkit-fake", "1.0"))
    assert not plugins.failures
    return plugins


PLUGINS = _plugins()
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # a recipe is a file: ten thousand need not reach a disk
_TEMPORARY = tempfile.TemporaryDirectory(prefix="ftkit-fuzz-", dir=_MEMORY)  # removed when the process ends
FOLDER = Path(_TEMPORARY.name)


def mutated(rng: random.Random) -> bytes:
    """The recipe with a few tokens put in, taken out, or swapped, and a few bytes changed."""
    text = RECIPE
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(text))
        text = text[:at] + rng.choice(TOKENS) + text[at + rng.choice([0, 0, 1, 5, 40]) :]
    data = bytearray(text, rng.choice(["utf-8"] * 6 + ["utf-16", "utf-8-sig", "utf-16-le"]))
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def check(data: bytes, overrides: list[str]) -> None:
    path = FOLDER / "recipe.yaml"
    path.write_bytes(data)
    started = time.process_time()
    recipe, problems = None, []
    try:
        recipe = load_recipe(path, overrides, PLUGINS)
    except RecipeError as error:
        problems = error.problems
    assert (recipe is None) == bool(problems)
    for problem in problems:
        text = str(problem)
        assert problem.message and len(text) < 4000
        assert all(c.isprintable() or c == "\n" for c in text), text
        assert "Input should" not in text and "pydantic" not in text, text
        text.encode()
    if recipe is not None:
        (FOLDER / "resolved.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        assert load_recipe(FOLDER / "resolved.yaml", plugins=PLUGINS) == recipe
    assert time.process_time() - started < SLOWEST


quiet = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)


def test_the_recipe_itself_is_right() -> None:
    check(RECIPE.encode(), [])
    assert load_recipe(FOLDER / "recipe.yaml", plugins=PLUGINS).controls[0].name == "small"


@pytest.mark.parametrize("part", range(PARTS))
def test_mutated_recipes(part: int) -> None:
    for number in range(part, COUNT, PARTS):
        data = mutated(random.Random(f"{SEED}-{number}"))
        try:
            check(data, [])
        except BaseException as error:
            raise AssertionError(f"FTKIT_FUZZ_SEED={SEED}, mutation {number}: {data!r}") from error


@settings(quiet, max_examples=100)
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes(data: bytes) -> None:
    check(data, [])


KEYS = st.sampled_from(
    ["name", "backend.lora_r", "prompt.template", "evaluator.0.language", "dataset.path", "tracking", ""]
)


@settings(quiet, max_examples=100)
@given(st.lists(st.tuples(KEYS, st.sampled_from(TOKENS) | st.text(max_size=30)).map("=".join) | st.text(), max_size=3))
def test_any_overrides(overrides: list[str]) -> None:
    check(RECIPE.encode(), overrides)
