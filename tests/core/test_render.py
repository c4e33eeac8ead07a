"""The report as text: what is written, what is missing, and that data stays data."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from report_samples import HOSTILE, hostile_report, large_report, metric, priced_report, sample_report, system

from ftkit.records import Curve, Delta, Metric, Pair, Report, Section
from ftkit.report.costs import costs_of
from ftkit.report.page import render
from ftkit.report.page.render import render_html, render_markdown
from ftkit.report.page.text import breakable
from ftkit.text import visible


class Page(HTMLParser):
    """The parsed page: its elements, and the text of each script and of everything else."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.text += data

    def data(self) -> Any:
        return json.loads(self.scripts[0])


def empty(**more: Any) -> Report:
    nothing: dict[str, Any] = {"systems": (), "deltas": (), "pairs": (), "curves": (), "runs": (), "sections": ()}
    return sample_report(**{**nothing, "warnings": (), "notes": (), **more})


# ---------------------------------------------------------------- what both documents say


def test_html_says_everything() -> None:
    text = Page(render_html(sample_report())).text
    for expected in (
        "Fine-tuning made the summaries clearly better",
        "+31.96",
        "15.23 → 47.19",
        "+30.10 to +33.80",
        "< 0.001",
        "45.19 to 49.29",
        "n 198, unscored 2",
        "1 h 10 min",
        "41,230",
        "2.34 GB",
        "$0.42",
        "12 of 200 test inputs",
        "stand-in",
        "How many of the facts are right.",
        "tiny-qlora",
        "seed: 42",
        '"ftkit": "0.1.0"',
    ):
        assert expected in text, expected


@pytest.mark.parametrize("draw", [render_html, render_markdown])
def test_what_is_not_known_is_a_dash(draw: Any) -> None:
    report = sample_report(systems=(system("tuned", "tuned", 0.4, model="", method="", usd=None, peak_memory=None),))
    assert "None" not in draw(report) and "–" in draw(report)


def test_primary_metric_comes_first() -> None:
    text = Page(render_html(sample_report())).text
    assert text.index("overlap1") < text.index("overlap2")


def test_markdown_says_the_same() -> None:
    text = render_markdown(sample_report())
    for expected in (
        "**Fine-tuning made the summaries clearly better**",
        "**+31.96 points** of overlap1 (baseline → tuned), 95 % interval +30.10 to +33.80",
        "- ⚠️ 12 of 200 test inputs also occur in the training rows.",
        "| tuned | tuned | 47.19 (45.19 to 49.29) |",
        "**−9.59** words",
        "5 of 60",
        "```\nname: tiny-qlora\nseed: 42\n```",
    ):
        assert expected in text, expected
    assert "\n\n\n" not in text


@pytest.mark.parametrize("draw", [lambda report: Page(render_html(report)).text, render_markdown])
def test_price_stands_beside_quality_with_its_source(draw: Any) -> None:
    text = draw(priced_report()).replace("&#36;", "$")
    for expected in (
        "Quality and price",
        "$0.936",
        "$0.0925",
        "6 min 56 s",
        "$0.80 an hour, in the recipe",
        "1 of 200",
        "2027-01-14",
        "the run directory",
        "On demand, chats-1b tuned is cheaper than chats-api tuned at every volume: the machine costs $0.0924 per 1,000 "
        "predictions against $0.152.",
        "Training chats-api tuned cost $5.23 more than chats-1b tuned.",
        "is cheaper than chats-api tuned ($0.152 per 1,000) from 3,830,000 predictions a month on; it can make 6,320,000",
        "$1,168.00",
        "2 machines",
        "prices as of 2026-11-01",
        "$5.90",
    ):
        assert expected in text, expected


@pytest.mark.parametrize(
    ("hour", "per_1k", "said"),
    [
        (0.8, 0.05, "chats-api tuned is cheaper than chats-1b tuned on a machine that is always on, at every volume"),
        (0.8, 0.05, "On demand, chats-api tuned is cheaper than chats-1b tuned at every volume"),
        (0.0, 0.05, "chats-1b tuned is cheaper at every volume: its machine costs nothing."),
        (3.6, 0.416, "costs as much as chats-api tuned: $0.416 per 1,000 predictions against $0.416."),
        (
            0.8,
            0.05,
            "Training chats-api tuned cost $5.23 more than chats-1b tuned, which is repaid after 123,000 predictions",
        ),
    ],
)
def test_break_even_in_words(hour: float, per_1k: float, said: str) -> None:
    systems = priced_report().systems
    prices = {"chats-1b tuned": {"usd_per_hour": hour, "train_usd": 0.9356}, "chats-api tuned": {"usd_per_1k": per_1k}}
    text = Page(render_html(replace(priced_report(), costs=costs_of(systems, prices).to_dict()))).text
    assert said in text


def test_each_line_of_the_verdict_is_a_paragraph() -> None:
    report = sample_report(verdict_detail="first line\nsecond line")
    assert "<p>first line</p><p>second line</p>" in render_html(report)
    assert "first line\n\nsecond line\n\n" in render_markdown(report)


def test_corrected_p_values_are_shown_where_there_are_some() -> None:
    report = sample_report()
    assert "Holm" not in render_html(report) + render_markdown(report)
    corrected = replace(report, deltas=(replace(report.deltas[0], p_value=0.01, p_adjusted=0.02),))
    for text in (render_html(corrected), render_markdown(corrected)):
        assert "p, Holm" in text and "0.020" in text


def test_markdown_tables_have_equal_rows() -> None:
    for report in (sample_report(), priced_report(), hostile_report(), large_report(50)):
        for table in re.findall(r"(?:^\|.*\n)+", render_markdown(report), re.M):
            assert len({row.count("|") for row in table.splitlines()}) == 1, table


def test_lines_of_several_runs_are_named_after_them() -> None:
    curves = tuple(Curve(run, "training", "loss", ([0, 2.0], [1, 1.0])) for run in ("run-a", "run-b"))
    runs = ({"id": "run-a", "name": "small"}, {"id": "run-b", "name": "large"})
    text = Page(render_html(sample_report(curves=curves, runs=runs))).text
    assert "small: training" in text and "large: training" in text


def test_curves_of_metrics_are_drawn_in_percent() -> None:
    report = sample_report(curves=(Curve("run-a", "overlap1", "validation metrics", ([0, 0.1], [9, 0.5])),))
    assert "10.00 at step 0, 50.00 at step 9" in render_html(report)


def test_a_long_curve_is_thinned_and_keeps_its_peak() -> None:
    points = [[float(i), 1.0] for i in range(100_000)]
    points[54_321][1] = 99.0
    html = render_html(sample_report(curves=(Curve("r", "loss", "loss", tuple(points)),)))
    (line,) = [attrs["points"] or "" for tag, attrs in Page(html).tags if tag == "polyline"]
    heights = [float(point.split(",")[1]) for point in line.split()]
    assert len(heights) < 1300 and min(heights) < 2 and max(heights) > 98


# ---------------------------------------------------------------- missing things


@pytest.mark.parametrize("draw", [render_html, render_markdown])
def test_an_empty_report_says_what_is_missing(draw: Any) -> None:
    text = draw(empty(verdict="", verdict_detail="", primary=""))
    for expected in ("No verdict", "Nothing has been measured yet", "no differences to show", "no examples to show"):
        assert expected in text, expected


@pytest.mark.parametrize("draw", [render_html, render_markdown])
def test_an_unfinished_run_is_spoken_of_once(draw: Any) -> None:
    stages = [
        {"name": "baseline", "status": "done", "seconds": 3.0},
        {"name": "train", "status": "failed", "error": "out of memory", "seconds": None},
    ]
    text = draw(
        empty(
            systems=(system("baseline", "baseline", 0.2),),
            runs=({"id": "r1", "name": "tiny", "status": "failed", "stages": stages},),
            warnings=("this run failed in train: out of memory",),
        )
    )
    first = text.replace("\\", "").split("Scores\n" if draw is render_markdown else 'id="scores"')[0]
    assert first.count("this run failed in train: out of memory") == 1
    assert first.count("out of memory") == 1


def test_names_break_after_their_marks_and_stay_data() -> None:
    assert str(breakable("control-lead_3")) == "control-<wbr>lead_<wbr>3"
    assert str(breakable("a_<b>&_\x1b-")) == "a_<wbr>&lt;b&gt;&amp;_<wbr>␛-"
    assert breakable(None) == "–"


def test_values_that_are_no_numbers_do_not_stop_the_report() -> None:
    odd = {"overlap1": Metric("overlap1", math.nan), "other": Metric("other", 10**400, unit="things")}
    text = render_html(
        sample_report(
            systems=(system("tuned", "tuned", 0.1, metrics=odd, seconds=None, usd=math.inf, tokens_in=None),),
            deltas=(Delta("gone", "tuned", "unknown", math.nan, None, None, None, 0),),
            curves=(
                Curve("r", "loss", "loss", ([0, math.nan], [1, math.inf])),
                Curve("r", "lr", "rate", ([0, 1.0], [1, math.nan], [2])),
                Curve("r", "x", "none", ()),
            ),
            pairs=(Pair("a", "b", (), {"tuned": {"text": None, "score": math.nan}, "odd": {}}, delta=math.inf),),
        )
    )
    assert "Nothing was logged for this curve." in text and "2 points were not finite numbers" in text
    (row,) = Page(text).data()["rows"]
    assert row["delta"] is None and row["answers"][0]["value"] is None


def test_a_plugin_block_of_unknown_shape_is_shown_as_data() -> None:
    blocks = ({"kind": "curves", "curves": [{"points": 3}]}, {"kind": "hologram", "x": 1}, {"kind": "table"})
    report = sample_report(sections=(Section("Odd", blocks),))
    assert "hologram" in Page(render_html(report)).text
    assert "hologram" in render_markdown(report)


def test_a_long_plugin_table_says_how_much_is_left_out() -> None:
    table = {"kind": "table", "header": ["i"], "rows": [[i] for i in range(1234)]}
    assert "734 more rows are left out" in render_html(sample_report(sections=(Section("Long", (table,)),)))


# ---------------------------------------------------------------- hostile data


def test_hostile_text_stays_text_in_html() -> None:
    html = render_html(hostile_report())
    html.encode("utf-8")
    page = Page(html)
    assert [attrs.get("type") for tag, attrs in page.tags if tag == "script"] == ["application/json", None]
    assert "img" not in [tag for tag, _ in page.tags]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    for character in "\x00\x1b\u202e\u2028\ud800":
        assert character not in html
    assert "{{ 7 * 7 }}" in page.text and "<|eot_id|>" in page.text


def test_the_data_island_cannot_be_left_and_reads_back() -> None:
    html = render_html(hostile_report())
    island = html.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(island)
    (row,) = json.loads(island)["rows"]
    assert row["input"] == row["answers"][0]["text"] == visible(HOSTILE)


def test_hostile_text_stays_text_in_markdown() -> None:
    text = render_markdown(hostile_report())
    text.encode("utf-8")
    outside = re.sub(r"^(`{3,})\n.*?^\1$", "", text, flags=re.M | re.S)
    assert "<script" not in outside and "<img" not in outside and "](" not in outside
    assert "http://" not in outside and "@someone" not in outside
    assert re.sub("<details><summary>|</summary>|</details>|", "", outside).count("<") == 0


def test_a_recipe_cannot_close_its_fence() -> None:
    run = {"id": "r", "recipe": "a\n```\n<script>\n````\n"}
    assert "`````\na\n```\n<script>\n````\n`````" in render_markdown(sample_report(runs=(run,)))


def test_the_page_may_run_only_its_own_script_and_load_nothing() -> None:
    html = render_html(sample_report())
    policy = next(attrs["content"] or "" for tag, attrs in Page(html).tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    assert not re.search(r"https?://", html)
    assert not re.search(r'\s(style|src|href)="(?!#|data:,)', html)


# ---------------------------------------------------------------- size


def test_a_ten_megabyte_text_is_cut_and_says_so() -> None:
    huge = "x" * 10_000_000
    pair = Pair("a", huge, (huge,), {"tuned": {"text": huge, "score": 0.1}})
    html = render_html(sample_report(pairs=(pair,), warnings=(huge,)))
    assert len(html) < 500_000 and "[cut here: 10,000,000 characters in all]" in html
    assert len(render_markdown(sample_report(pairs=(pair,)))) < 20_000


def test_many_long_texts_share_a_budget() -> None:
    text = "y" * 19_000
    pairs = [Pair(str(i), text, (text,), {}) for i in range(2_000)]
    html = render_html(sample_report(pairs=tuple(pairs)))
    assert len(html) < render.TEXT_BUDGET and "longer than 5,000 characters" in html


def test_a_metric_that_only_some_rows_have() -> None:
    systems = (system("a", "baseline", 0.1, metrics={}), system("b", "tuned", 0.2, metrics={"m": metric("m", 0.2)}))
    assert "20.00" in render_html(sample_report(systems=systems, deltas=()))
