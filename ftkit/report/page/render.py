"""Draw a `Report` as one HTML page and as Markdown. Computes no statistics: it formats and escapes.

Two rules keep hostile data harmless. Whatever a template prints goes through the environment's
`finalize` (invisible characters made visible) and then through escaping. The examples travel as a
JSON data island that the page's script shows with `textContent` only.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from ...lang import catalogue, joined, language, plural, tr
from ...records import Report
from ...text import finite, one_line
from ..spoken import in_language
from .examples import answer_order, examples_view, slices_view
from .text import breakable, commands, in_own_language, json_island, md_fence, md_text, shown
from .view import View, scales_of, view_of

EXAMPLES = ("diff.js", "csv.js", "cards.js", "examples.js", "tools.js")  # one script: each uses those before it


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
    environment.globals |= {"_": tr, "_n": plural, "_html": html, "_gap": _gap}
    environment.filters |= {"breakable": breakable, "own_lang": in_own_language, "joined": joined}
    environment.filters["commands"] = commands
    return environment


def _gap() -> Markup:
    """Return what stands between two sentences: a space in English."""
    return Markup(tr(" "))


def html(text: str, /, **values: object) -> Markup:
    """Return a text of the catalogue that holds markup; its values are escaped."""
    return Markup(tr(text)).format(**values)


_IN_SCRIPT = re.compile(r'\btr\("([^"]*)"')


def script_texts(script: str) -> str:
    """Return as JSON the translations of all texts that a script shows; "" for English."""
    known = catalogue(language())
    found = {text: known[text] for text in _IN_SCRIPT.findall(script) if text in known}
    return json.dumps(found, ensure_ascii=False) if found else ""


@functools.cache
def _asset(*names: str) -> tuple[Markup, str]:
    """Files to put inline as one, and the hash by which the page's content policy allows it and nothing else."""
    environment = _environment()
    assert environment.loader
    text = "\n".join(environment.loader.get_source(environment, name)[0] for name in names)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), f"'sha256-{digest}'"


def render_html(report: Report) -> str:
    """Return report.html: one file that needs nothing else and asks nothing of the network."""
    css, css_hash = _asset("report.css", "result.css", "examples.css")
    js, js_hash = _asset("texts.js", "report.js", "tables.js", *EXAMPLES)
    report = in_language(report)
    scales = scales_of(report)
    examples = examples_view(report, scales)
    page = _environment().get_template("report.html.j2")
    return page.render(
        view_of(report),
        css=css,
        js=js,
        texts=script_texts(js),
        policy=f"default-src 'none'; style-src {css_hash}; script-src {js_hash}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        examples=examples,
        slices=slices_view(report, scales),
        island=json_island(examples["island"]),
    )


def render_brief(report: Report) -> str:
    """Return brief.html: the result on one A4 page, without a script."""
    css, css_hash = _asset("report.css", "result.css", "brief.css")
    policy = f"default-src 'none'; style-src {css_hash}; img-src data:; base-uri 'none'; form-action 'none'"
    return _environment().get_template("brief.html.j2").render(view_of(in_language(report)), css=css, policy=policy)


MD_TEXT = 160  # characters of a text of an example


def _md_examples(report: Report) -> list[View]:
    """Up to three rows: the largest gain, the middle one, the largest loss; up to four answers of each."""
    ranked = sorted((p for p in report.pairs if finite(p.delta) is not None), key=lambda p: -(p.delta or 0.0))
    last = len(ranked) - 1
    chosen = [ranked[i] for i in sorted({0, last // 2, last}) if 0 <= i <= last] or report.pairs[:3]
    scale, systems = scales_of(report)[report.primary], answer_order(report)[:4]

    def answer(a: Mapping[str, Any] | None) -> str:
        if a is None:
            return tr("no answer")
        if a.get("error") is not None:
            return tr("failed: {error}", error=one_line(str(a["error"]), MD_TEXT))
        score = finite(a.get("score"))
        text = one_line(str(a.get("text") or ""), MD_TEXT)
        return text + (f" ({scale.value(score)})" if score is not None else "")

    return [
        {
            "id": one_line(p.example_id, 60),
            "reference": one_line(" / ".join(p.targets), MD_TEXT),
            "answers": [{"name": name, "text": answer(p.answers.get(name))} for name in systems],
            "delta": f"{scale.signed(p.delta)} {scale.delta_unit}" if finite(p.delta) is not None else None,
        }
        for p in chosen
    ]


def render_markdown(report: Report) -> str:
    """Return report.md: the findings for a pull request and a terminal; report.html has the rest."""
    report = in_language(report)
    view = view_of(report)
    for section in view["sections"]:
        for block in section["blocks"]:
            if block["kind"] == "data":
                block["text"] = md_fence(block["text"])
    examples = _md_examples(report)
    page = _environment(markdown=True).get_template("report.md.j2")
    text = page.render(view, examples=examples, n_examples=len(report.pairs))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
