"""A value of a row as text: never Python source, never dropped."""

from __future__ import annotations

import datetime
import enum
import json
from decimal import Decimal
from typing import Any

import pytest

from ftkit.data.values import Cell, kept, text_of, texts_of
from ftkit.errors import InputError

PART = {"type": "text", "text": "Hello "}


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a 'b'\n", "a 'b'\n"),
        (None, ""),
        (7, "7"),
        (-0.1, "-0.1"),
        (2.0, "2.0"),
        (Decimal("1.50"), "1.50"),
        ([PART, {"type": "text", "text": "world"}], "Hello world"),
        ([{**PART, "image_url": None}], "Hello "),  # as a table pads the objects of a column
        (({"type": "input_text", "text": "x"},), "x"),
        (PART, "Hello "),
        ({"ok": True, "n": None, "名": "結衣"}, '{"ok":true,"n":null,"名":"結衣"}'),
        ([], "[]"),
        ({}, "{}"),
        ((1, "a", [2.5]), '[1,"a",[2.5]]'),
        ([{"type": "PERSON", "text": "Anna"}], '[{"type":"PERSON","text":"Anna"}]'),
        ([{"type": "file", "name": "a"}], '[{"type":"file","name":"a"}]'),
        ({"price": Decimal("1.5")}, '{"price":1.5}'),
        ("\ud800", "\ud800"),
        (Colour.RED, "red"),
    ],
)
def test_text(value: Any, text: str) -> None:
    assert text_of(value, "here") == text and type(text_of(value, "here")) is str


def test_numbers_of_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    values = [numpy.int64(3), numpy.float32(0.1), numpy.float64(0.25), numpy.array([1, 2]), numpy.str_("a")]
    assert [text_of(v, "x") for v in values] == ["3", "0.1", "0.25", "[1,2]", "a"]
    assert text_of({"a": numpy.array([1.5]), "b": numpy.float32(0.1)}, "x") == '{"a":[1.5],"b":0.1}'
    for bad in (numpy.bool_(True), numpy.float32("nan"), numpy.datetime64("2024-01-02")):
        with pytest.raises(InputError, match="not text"):
            text_of(bad, "x")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (True, "a boolean (true) is not text"),
        (False, "a boolean (false) is not text"),
        (float("nan"), "the number nan is not text"),
        (float("-inf"), "the number -inf is not text"),
        (Decimal("NaN"), "is not text"),
        (b"abc", "bytes (b'abc') is not text"),
        (datetime.datetime(2024, 1, 2), "a time (datetime.datetime(2024, 1, 2, 0, 0)) is not text"),
        (datetime.date(2024, 1, 2), "a date"),
        ({1, 2}, "a set"),
        (object(), "a value of type object"),
        ({"when": datetime.date(2024, 1, 2)}, "holds a value that is not text"),
        ({"x": [float("nan")]}, "cannot be written as JSON"),
        ({(1, 2): 3}, "cannot be written as JSON"),
        ([PART, {"type": "image_url", "image_url": {"url": "x"}}], "part 2 of its content is 'image_url'"),
        ([{"type": "image"}, PART], "part 1 of its content is 'image'"),
        ([{"type": "input_audio", "input_audio": {}}], "part 1 of its content is 'input_audio'"),
    ],
)
def test_everything_else_is_refused_with_its_place(value: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        text_of(value, Cell("dataset.columns.target", "train", 3, "answer", "k7"))
    assert caught.value.message.startswith("dataset.columns.target: train row 3 (id 'k7'), column 'answer': "), (
        caught.value.message
    )
    assert says in caught.value.message and caught.value.hint


def test_deep_and_circular_values_are_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    loop: list[Any] = []
    loop.append(loop)
    for value in (deep, loop):
        with pytest.raises(InputError, match="cannot be written as JSON"):
            text_of(value, "here")


def test_several_answers() -> None:
    assert texts_of(["a", 2, [PART], {"b": 1}], "x") == ("a", "2", "Hello ", '{"b":1}')
    assert texts_of("one", "x") == ("one",) and texts_of(None, "x") == texts_of([], "x") == ("",)
    for value, says in ((7, "must hold a list"), (["a", None], "answer 2 of 2: empty"), ([True], "answer 1 of 1")):
        with pytest.raises(InputError, match=says):
            texts_of(value, "x")


def test_what_is_kept_beside_the_text() -> None:
    values = {"a": [True, None, 1.5], "when": datetime.datetime(2024, 1, 2, 3), "day": datetime.date(2024, 1, 2)}
    assert kept(values, "x") == {"a": [True, None, 1.5], "when": "2024-01-02T03:00:00", "day": "2024-01-02"}
    assert kept("\ud800", "x") == "\ud800" and kept(True, "x") is True
    assert json.dumps(kept(Decimal("1.5"), "x")) == "1.5"
    for bad in (b"x", float("nan"), object()):
        with pytest.raises(InputError, match=r"^here: "):
            kept(bad, "here")
