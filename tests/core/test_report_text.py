"""How texts and numbers are written in a report, and the marks on an axis."""

from __future__ import annotations

import math

import pytest
from markdown_it import MarkdownIt
from report_samples import HOSTILE

from ftkit.report.page import charts
from ftkit.report.page.text import ZERO_WIDTH, md_text, moment
from ftkit.text import about, dollars, duration, p_value, scale_for, size, visible


@pytest.mark.parametrize(
    ("unit", "value", "shown", "signed"),
    [
        ("fraction", 0.4719, "47.19", "+47.19"),
        ("fraction", -0.1234, "−12.34", "−12.34"),
        ("fraction", -0.000001, "0.00", "0.00"),
        ("words", 12.345, "12.35", "+12.35"),
        ("words", 123.45, "123.5", "+123.5"),
        ("tokens", 12345.6, "12,346", "+12,346"),
        ("nats", 0.01234, "0.0123", "+0.0123"),
        ("fraction", None, "–", "–"),
        ("fraction", math.nan, "–", "–"),
        ("fraction", math.inf, "–", "–"),
    ],
)
def test_numbers_are_written_for_people(unit: str, value: float | None, shown: str, signed: str) -> None:
    scale = scale_for(unit, [value])
    assert (scale.value(value), scale.signed(value)) == (shown, signed)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (duration(3.21), "3.2 s"),
        (duration(59.6), "1 min 00 s"),
        (duration(4210), "1 h 10 min"),
        (duration(None), "–"),
        (size(2_340_000_000), "2.34 GB"),
        (size(12_000_000), "12.0 MB"),
        (dollars(0.004), "$0.004"),
        (dollars(0), "$0"),
        (dollars(1234.5), "$1,234.50"),
        (dollars(None), "–"),
        (p_value(0.0001), "< 0.001"),
        (p_value(0.0312), "0.031"),
        (p_value(None), "–"),
    ],
)
def test_costs_and_p_values(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize(
    ("unit", "width", "shown"),
    [("fraction", 0.04, "90.5"), ("fraction", 0.004, "90.53"), ("fraction", 0.5, "90.5"), ("words", 0.5, "0.91"), ("words", 30, "1"), ("tokens", 0.003, "0.9053")],
)  # fmt: skip
def test_the_digits_follow_the_interval(unit: str, width: float, shown: str) -> None:
    assert scale_for(unit, [0.9053], [width, None]).value(0.9053) == shown


@pytest.mark.parametrize("ends", [(0, 1), (0.4, 3.7), (5, 5), (-2, 9), (0, 1e-9), (1e17, 1e17 + 16), (-1e99, 1e99)])
def test_ticks_cover_the_range(ends: tuple[float, float]) -> None:
    at = charts.ticks(*ends)
    assert at[0] <= ends[0] and at[-1] >= ends[1] and 2 <= len(at) <= 9
    assert len(set(at)) == len(at) == len(charts.tick_labels(at))


def test_tick_labels_have_the_decimals_of_their_step() -> None:
    assert charts.tick_labels(charts.ticks(0, 1)) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert charts.tick_labels(charts.ticks(0, 50)) == ["0", "10", "20", "30", "40", "50"]


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        (None, "–"), (0, "$0"), (1234.5, "$1,234.50"), (1, "$1.00"), (0.8, "$0.80"), (0.0123456, "$0.0123"),
        (0.000002, "$0.000002"), (1e-12, "< $0.000000001"), (0.9999, "$1.00"),
    ],
)  # fmt: skip
def test_prices_keep_the_digits_that_count(usd: float | None, shown: str) -> None:
    assert dollars(usd) == shown


@pytest.mark.parametrize(
    ("n", "shown"), [(None, "–"), (0.4, "0"), (999, "999"), (1_668_571, "1,670,000"), (1046.2, "1,050")]
)
def test_large_counts_are_rounded_to_what_matters(n: float | None, shown: str) -> None:
    assert about(n) == shown


def test_times_are_written_for_people() -> None:
    assert moment("2026-11-24T06:11:25+00:00") == moment("2026-11-24T06:11:25.123Z") == "2026-11-24 06:11 UTC"
    assert moment("2026-11-24T06:11:25+01:00") == "2026-11-24T06:11:25+01:00"
    assert moment(None) is None and moment(HOSTILE) == HOSTILE


def test_hidden_characters_become_visible() -> None:
    assert visible("a\x1b[31m\x00\x7f\x85") == "a␛[31m␀␡⟨U+0085⟩"
    assert visible("\u202egnp.exe \u2066 \ud800") == "⟨U+202E⟩gnp.exe ⟨U+2066⟩ ⟨U+D800⟩"
    assert visible("a\r\nb\rc\td\n") == "a\nb␍c\td\n"
    assert visible("naïve 結衣 👩‍👩‍👧 עברית") == "naïve 結衣 👩‍👩‍👧 עברית"


@pytest.mark.parametrize(
    "text",
    [
        *("# heading", "- item", "+ item", "1. item", "2) item", "---", "===", "> quote", "a\n\n# b", "a | b", "*a*"),
        *("**a**", "`a`", "~~a~~", "_a_", "__a__", "a _b_ c", "_a_b_", "<b>", "</b>", "<!-- a -->", "<?a?>", "&amp;", "&#95;"),
        *("[a](http://b.test)", "![a](b)", "[a]: b", "http://a.test", "<http://a.test>", "a \\* b", "\\", "=", "+", "-"),
        HOSTILE,
    ],
)  # fmt: skip
def test_markdown_marks_mean_nothing(text: str) -> None:
    """A renderer shows a data text letter by letter, in a paragraph as in a table's cell."""
    line = md_text(text)
    assert "\n" not in line
    letters = " ".join(visible(text).split())
    renderer = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for page in (line, f"| head |\n|---|\n| {line} |\n"):
        tokens = renderer.parse(page)
        inline = [t for t in tokens if t.type == "inline"][-1]
        assert {t.type for t in inline.children or ()} <= {"text", "text_special"}, page
        assert "".join(t.content for t in inline.children or ()).replace(ZERO_WIDTH, "") == letters
        assert {t.type for t in tokens} <= {"inline", "paragraph_open", "paragraph_close"} or page != line


@pytest.mark.parametrize("text", ["all_slots", "rouge1 → 5 < 6 & more", "costs $0.42", "a_b_c", "test-0-2", "x > y"])
def test_markdown_of_plain_names_is_readable_in_a_terminal(text: str) -> None:
    assert md_text(text) == text
