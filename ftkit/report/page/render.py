"""Draw a `Report` as one HTML page and as Markdown. Computes no statistics: it formats and escapes.

Two rules keep hostile data harmless. Whatever a template prints goes through the environment's
`finalize` (invisible characters made visible) and then through escaping. The examples travel as a
JSON data island that the page's script shows with `textContent` only.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from ...records import Pair, Report
from ...text import finite, one_line, visible
from .text import TEXT_CAPS, breakable, clip, json_island, md_fence, md_text, shown
from .view import View, scales_of, view_of

TEXT_BUDGET = 40_000_000  # characters of all examples together


# ---------------------------------------------------------------- examples


def _answer_order(report: Report) -> list[str]:
    answered = dict.fromkeys(name for pair in report.pairs for name in pair.answers)
    known = [s.name for s in report.systems if s.name in answered]
    return [*known, *(name for name in answered if name not in known)]


def _text_cap(pairs: Sequence[Pair]) -> int:
    lengths = [
        len(text)
        for p in pairs
        for text in (p.input, *p.targets, *(str(a.get("text") or "") for a in p.answers.values()))
    ]
    fitting = (cap for cap in TEXT_CAPS if sum(min(n, cap) for n in lengths) <= TEXT_BUDGET)
    return next(fitting, TEXT_CAPS[-1])


def _examples(report: Report) -> View:
    """The examples as the page's script reads them: texts ready to show, numbers to sort by."""
    systems, cap = _answer_order(report), _text_cap(report.pairs)
    scale = scales_of(report)[report.primary]

    def text(value: object) -> str:
        return visible(clip(str(value), cap))

    def answer(a: Mapping[str, Any] | None) -> View | None:
        if a is None:
            return None
        score = finite(a.get("score"))
        view: View = {"text": text(a.get("text") or ""), "score": scale.value(score) if score is not None else None}
        view |= {key: text(a[key]) for key in ("error", "answer", "reason") if a.get(key) is not None}
        return view | {"value": score}

    def row(pair: Pair) -> View:
        delta = finite(pair.delta)
        return {
            "id": text(pair.example_id),
            "input": text(pair.input),
            "targets": [text(t) for t in pair.targets],
            "answers": [answer(pair.answers.get(name)) for name in systems],
            "delta": delta,
            "shown": scale.signed(delta) if delta is not None else None,
        }

    rows = [row(pair) for pair in report.pairs]
    has_delta = any(r["delta"] is not None for r in rows)
    by_delta = [("delta-down", "Largest gain first"), ("delta-up", "Largest loss first")]
    by_score = [("score-up", f"Lowest score first ({visible(systems[-1])})")] if systems else []
    return {
        "systems": [visible(name) for name in systems],
        "rows": rows,
        "unit": scale.unit,
        "delta_unit": scale.delta_unit,
        "sorts": [*(by_delta if has_delta else []), *by_score, ("order", "Test order"), ("id", "Id")],
        "has_delta": has_delta,
        "cap": cap,
    }


# ---------------------------------------------------------------- the two documents


@functools.cache
def _environment(markdown: bool = False) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ftkit.report.page"),
        autoescape=not markdown,
        finalize=md_text if markdown else shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = breakable
    return environment


@functools.cache
def _asset(name: str) -> tuple[Markup, str]:
    """A file to put inline, and the hash by which the page's content policy allows it and nothing else."""
    environment = _environment()
    assert environment.loader
    text = environment.loader.get_source(environment, name)[0]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"'sha256-{digest}'"


def render_html(report: Report) -> str:
    """Return report.html: one file that needs nothing else and asks nothing of the network."""
    css, css_hash = _asset("report.css")
    js, js_hash = _asset("report.js")
    examples = _examples(report)
    data = {key: examples[key] for key in ("systems", "rows", "unit", "delta_unit")}
    page = _environment().get_template("report.html.j2")
    return page.render(
        view_of(report),
        css=css,
        js=js,
        policy=f"default-src 'none'; style-src {css_hash}; script-src {js_hash}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        examples=examples,
        n_examples=len(report.pairs),
        island=json_island(data),
    )


def _md_examples(report: Report) -> list[View]:
    """Up to five rows: the two largest gains, the middle one, the two largest losses."""
    ranked = sorted((p for p in report.pairs if finite(p.delta) is not None), key=lambda p: -(p.delta or 0.0))
    last = len(ranked) - 1
    chosen = [ranked[i] for i in sorted({0, 1, last // 2, last - 1, last}) if 0 <= i <= last] or report.pairs[:5]
    scale, systems = scales_of(report)[report.primary], _answer_order(report)

    def answer(a: Mapping[str, Any] | None) -> str:
        if a is None:
            return "no answer"
        if a.get("error") is not None:
            return f"failed: {one_line(str(a['error']), 160)}"
        score = finite(a.get("score"))
        return one_line(str(a.get("text") or ""), 240) + (f" ({scale.value(score)})" if score is not None else "")

    return [
        {
            "id": one_line(p.example_id, 60),
            "input": one_line(p.input, 240),
            "reference": one_line(" / ".join(p.targets), 240),
            "answers": [answer(p.answers.get(name)) for name in systems],
            "delta": scale.signed(p.delta),
        }
        for p in chosen
    ]


def render_markdown(report: Report) -> str:
    """Return report.md: the same findings for a pull request."""
    view = view_of(report)
    for run in view["runs"]:
        run["recipe"] = md_fence(run["recipe"]) if run["recipe"] else None
    for section in view["sections"]:
        for block in section["blocks"]:
            if block["kind"] == "data":
                block["text"] = md_fence(block["text"])
            for example in block.get("examples", ()):
                example["text"] = one_line(example["text"], 240)
    text = (
        _environment(markdown=True)
        .get_template("report.md.j2")
        .render(
            view,
            answer_names=_answer_order(report),
            examples=_md_examples(report),
            n_examples=len(report.pairs),
        )
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
