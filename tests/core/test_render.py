"""The report as text: what is written, what is missing, and that data stays data."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_it import MarkdownIt
from report_samples import (
    HOSTILE,
    hostile_report,
    large_report,
    led_report,
    metric,
    priced_report,
    sample_report,
    several_report,
    system,
)

from ftkit.records import Curve, Delta, Metric, Pair, Report, Section
from ftkit.report.costs import costs_of
from ftkit.report.page import examples
from ftkit.report.page.render import render_brief, render_html, render_markdown
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
    text = Page(render_html(led_report())).text
    for expected in (
        "Fine-tuning helped: overlap1 15.2 → 47.2",
        "But 12 of 59 answers still fail all_right, and 2 of these score 80 or more.",
        "acme/tiny-1b, 1.1 B",
        "training noise not measured",
        "Same prompt, settings and 200 test dialogues",
        "+32.0",
        "+30.1 to +33.8",
        "< 0.001",
        "45.2 to 49.3",
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
        "ftkit 0.1.0",
        "the weights of step 200 were kept",
        "Gain of each row",
    ):
        assert expected in text, expected


def test_each_bar_leads_to_its_example_and_says_in_words_what_its_colour_says() -> None:
    report = several_report()
    page = Page(render_html(report))
    links = [
        (attrs["href"], attrs["aria-label"])
        for tag, attrs in page.tags
        if tag == "a" and "#example=" in (attrs.get("href") or "")
    ]
    assert len(links) == 60
    assert links[0] == ("#example=test%2F0%20%C3%A4", "test/0 ä: +40.0, all_right wrong")
    assert links[1][1] == "test/1 ä: +39.0, all_right right"
    marks = [attrs for tag, attrs in page.tags if tag == "rect" and attrs.get("class") == "miss"]
    assert report.distribution is not None
    assert len(marks) == report.distribution.n_second - report.distribution.n_right == 12


def test_ten_thousand_rows_share_bars() -> None:
    report = large_report(10_000)
    gains = tuple(
        {"id": p.example_id, "gain": p.delta, "right": None}
        for p in sorted(report.pairs, key=lambda p: -(p.delta or 0))
    )
    base = led_report().distribution
    assert base is not None
    html = render_html(replace(report, distribution=replace(base, gains=gains, second="", n_second=0, n_right=0)))
    assert html.count('<rect class="gain') == 400 and "Each bar is 25 rows." in html


def test_several_systems_are_a_matrix_and_a_table_of_what_differs() -> None:
    page = Page(render_html(several_report()))
    text = page.text
    assert "What differs between the runs" in text and "backend.learning_rate" in text
    assert text.count("★") == 3  # overlap1 and overlap2 have a best one (words have no direction), and the legend
    assert text.count("▲") == text.count("▼") == 3 + 1  # each pair from both sides, and the caption
    assert text.count("lr=0.004 r=8 → lr=0.0004 r=16") == 0  # no line for each pair
    figures = [t for t, attrs in page.tags if t == "figure"]
    assert len(figures) == 10  # one panel a metric
    assert text.index("overlap1 %", text.index("Training curves")) < text.index("loss", text.index("Training curves"))
    colours = {attrs["class"] for tag, attrs in page.tags if tag == "polyline"}
    assert colours == {"line c0", "line c1", "line c2"}  # the seeds of one system share a colour


def test_what_ran_where_is_said_as_a_person_would() -> None:
    stages = [
        {"name": "train", "status": "done", "seconds": 61.0},
        {"name": "report", "status": "running", "seconds": None},
    ]
    lock = {
        "hardware": {"cpu": "AMD EPYC", "cores": 2, "gpus": []},
        "python": "3.12.1",
        "packages": {f"p{i}": "1" for i in range(120)},
    }
    run = {
        "id": "r1",
        "name": "tiny",
        "status": "done",
        "started": "2026-11-23T15:42:10Z",
        "reuse": True,
        "stages": stages,
        "lock": lock,
    }
    text = " ".join(Page(render_html(sample_report(runs=(run,)))).text.split())
    assert "Ran on 2 CPU cores (AMD EPYC), started 2026-11-23 15:42 UTC, 1 min 01 s in all." in text
    assert "120 packages" in text and "p7 1" in text and "Python 3.12.1" in text
    assert "report running" not in text and "Reuse" not in text and '"packages"' not in text


def test_columns_without_a_number_are_left_out() -> None:
    systems = tuple(
        system(
            name, name, 0.4, usd=None, train_usd=None, tokens_in=None, peak_memory=None, metrics={"m": metric("m", 0.4)}
        )
        for name in ("baseline", "tuned")
    )
    text = Page(render_html(sample_report(systems=systems, primary="m", deltas=(), sections=(), runs=()))).text
    for dead in (
        "Dollars",
        "Tokens in",
        "Peak memory",
        "Unscored",
        "Price to train",
        "Failed predictions",
        "Quality and price",
    ):
        assert dead not in text, dead
    assert "Tokens out" in text and "n = 200 rows for each system" in text and "Quality and time" in text


def test_a_metric_of_the_data_is_told_once() -> None:
    words = Metric("reference_words", 14.87, 14.7, 15.0, n=200, unit="words", higher_is_better=None)
    systems = tuple(
        system(n, n, v, metrics={"m": metric("m", v), "reference_words": words})
        for n, v in (("baseline", 0.2), ("tuned", 0.4))
    )
    deltas = (Delta("baseline", "tuned", "m", 0.2, 0.1, 0.3, 0.001, 200, verdict="better"),)
    text = Page(render_html(sample_report(systems=systems, primary="m", deltas=deltas))).text
    assert text.count("reference_words") == 1 and "The same for every system: reference_words 14.87" in text


@pytest.mark.parametrize("draw", [render_html, render_markdown])
def test_what_is_not_known_is_a_dash(draw: Any) -> None:
    report = sample_report(systems=(system("tuned", "tuned", 0.4, model="", method="", usd=None, peak_memory=None),))
    assert "None" not in draw(report) and "–" in draw(report)


def test_primary_metric_comes_first() -> None:
    text = Page(render_html(sample_report())).text
    assert text.index("overlap1") < text.index("overlap2")


def test_markdown_says_the_same_and_is_short() -> None:
    text = render_markdown(led_report())
    for expected in (
        "**Fine-tuning helped: overlap1 15.2 → 47.2**",
        "**But 12 of 59 answers still fail all_right, and 2 of these score 80 or more.**",
        "- Method: some-trainer (lr=0.004 r=16, 300 steps)",
        "- ⚠️ 12 of 200 test inputs also occur in the training rows.",
        "| tuned | 47.2 (45.2 to 49.3) |",
        "| baseline → tuned | **+32.0** points | +30.1 to +33.8 (95 %) | < 0.001 | better |",
        "3 of 60",
    ):
        assert expected in text, expected
    assert "\n\n\n" not in text and "&#" not in text and len(text.splitlines()) < 80
    assert len(render_markdown(several_report()).splitlines()) < 90


@pytest.mark.parametrize("draw", [lambda report: Page(render_html(report)).text, render_markdown])
def test_price_stands_beside_quality_with_its_source(draw: Any) -> None:
    text = draw(priced_report())
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
    for report in (
        sample_report(),
        priced_report(),
        hostile_report(),
        large_report(50),
        several_report(),
        led_report(),
    ):
        for table in re.findall(r"(?:^\|.*\n)+", render_markdown(report), re.M):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_lines_of_several_runs_are_named_after_them() -> None:
    curves = tuple(Curve(run, "training", "loss", ([0, 2.0], [1, 1.0])) for run in ("run-a", "run-b"))
    runs = ({"id": "run-a", "name": "small"}, {"id": "run-b", "name": "large"})
    text = Page(render_html(sample_report(curves=curves, runs=runs))).text
    assert "small: 2.00 at step 0, 1.00 at step 1" in render_html(sample_report(curves=curves, runs=runs))
    assert "small" in text and "large" in text


def test_curves_of_metrics_are_drawn_in_percent() -> None:
    report = sample_report(curves=(Curve("run-a", "overlap1", "validation metrics", ([0, 0.1], [9, 0.5])),))
    assert "10.0 at step 0, 50.0 at step 9" in render_html(report)


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
    assert [a["values"][0] for a in row["answers"] if a] == [None, None]


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
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    kinds = {child.type for token in tokens for child in (token, *(token.children or ()))}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "code_inline", "s_open", "em_open"}, kinds
    assert "http://" not in text.split("```")[0] and "@someone" not in text.split("```")[0]


def test_data_of_a_plugin_cannot_close_its_fence() -> None:
    report = sample_report(sections=(Section("Odd", ({"kind": "odd", "x": "a\n```\n<script>\n````\n"},)),))
    (block,) = [t for t in MarkdownIt("commonmark").parse(render_markdown(report)) if t.type == "fence"]
    assert "<script>" in block.content


def test_the_page_may_run_only_its_own_script_and_load_nothing() -> None:
    for html in (render_html(led_report()), render_html(several_report()), render_brief(led_report())):
        _loads_nothing(html)


def _loads_nothing(html: str) -> None:
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
    assert len(html) < examples.TEXT_BUDGET and "longer than 5,000 characters" in html


def test_a_metric_that_only_some_rows_have() -> None:
    systems = (system("a", "baseline", 0.1, metrics={}), system("b", "tuned", 0.2, metrics={"m": metric("m", 0.2)}))
    assert "20.0" in render_html(sample_report(systems=systems, deltas=()))
