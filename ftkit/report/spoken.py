"""A report in another language: its stored texts are English, and are made again from their templates and values."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..lang import language, msg, tr, translated
from ..records import Headline, Report, Section
from .slices import NO_VALUE, RANGE, REST

# English texts that a run directory holds as they are, known by their form.
STORED = (
    msg("from {n} examples no interval is dependable: it needs {least}"),
    msg("from {n} different inputs no interval is dependable: it needs {least}"),
    msg("only {varied} of {n} values differ from the rest: no interval is dependable"),
    msg("no interval: every input has the same mean"),
    msg("no interval: all values are equal"),
    msg("no interval: all rows have the same input"),
    msg("no interval: this metric is not a mean over rows"),
    msg("no interval from one example"),
    msg("{split}: {n} empty input (id {ids})"),
    msg("{split}: {n} empty inputs (id {ids})"),
    msg("{split}: {n} empty target (id {ids})"),
    msg("{split}: {n} empty targets (id {ids})"),
    msg("{split}: {n} of {rows} rows have their input as the target; `dataset.columns` says which columns are read"),
    msg("{split}: {n} row has an input that also occurs in train; `dataset.drop_leaked: true` takes them out of train"),
    msg(
        "{split}: {n} rows have an input that also occurs in train; `dataset.drop_leaked: true` takes them out of train"
    ),
    msg("test: {n} row has an input that also occurs in validation"),
    msg("test: {n} rows have an input that also occurs in validation"),
    msg("the tuned model gave the base model's answer to all {n} test rows: training changed nothing that can be seen"),
    msg(
        "the tuned model gave the base model's answer to all {n} validation rows: "
        "training changed nothing that can be seen"
    ),
    msg("see which other programs use the GPU, and end them"),
    msg("see how much memory is free, and end what is not needed"),
    msg("see how much room is left where the run is"),
    msg("find what is large there, such as checkpoints of other unfinished runs"),
    msg("see whether the GPU and its driver answer"),
    msg("resume with exact error messages (slower)"),
    msg("its process ended without a word, during {stage}"),
    msg("its process ended without a word"),
    msg("the GPU has not enough memory: {error}"),
    msg("this machine has not enough memory: {error}"),
    msg("the disk is full: {error}"),
    msg("the GPU reported an error: {error}"),
    msg("no answer came in time: {error}"),
    msg("the network, or the server at its other end, cannot be reached: {error}"),
    msg("put the file back, or run the recipe again"),
)


def translator(texts: Mapping[str, Any]) -> Callable[[str], str]:
    """Return a function from a stored English text to the language of this moment; what is not known stays."""
    if language() == "en":
        return lambda text: text
    known = dict(texts)

    def translate(text: str) -> str:
        for name in _nested(text, known):
            if name not in known and (found := _recognised(name)):
                known[name] = found
        return translated(text, known)

    return translate


def _nested(text: str, texts: Mapping[str, Any], depth: int = 8) -> list[str]:
    """Return a text and the texts that it was made from."""
    made = texts.get(text)
    if not made or not depth:
        return [text]
    parts = made["parts"] if "parts" in made else [v for v in made["values"].values() if isinstance(v, str)]
    return [text, *(name for part in parts if part != text for name in _nested(part, texts, depth - 1))]


def _recognised(text: str) -> dict[str, Any] | None:
    """Return the template and the values of a stored text, its first letter large or small."""
    small = f"{text[:1].lower()}{text[1:]}"
    for template, pattern in _patterns():
        found = pattern.fullmatch(text) or pattern.fullmatch(small)
        if found:
            return {"text": template, "values": found.groupdict()}
    return None


@functools.cache
def _patterns() -> Sequence[tuple[str, re.Pattern[str]]]:
    made = []
    for template in STORED:
        escaped = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(template))
        made.append((template, re.compile(escaped, re.DOTALL)))
    return made


def in_language(report: Report) -> Report:
    """Return a report whose own texts are in the language of this moment; names and data stay as they are."""
    if language() == "en":
        return report
    translate = translator(report.texts)
    groups = {name: made for name, made in report.texts.items() if made.get("text") in (RANGE, REST, NO_VALUE)}
    return replace(
        report,
        title=translate(report.title),
        verdict=translate(report.verdict),
        verdict_detail="\n".join(translate(line) for line in report.verdict_detail.split("\n")),
        warnings=tuple(map(translate, report.warnings)),
        notes=tuple(map(translate, report.notes)),
        headline=_headline(report.headline, translate) if report.headline else None,
        deltas=tuple(replace(d, method=translate(d.method)) if d.method else d for d in report.deltas),
        slices=tuple(_slice(table, translate, groups) for table in report.slices),
        costs=_costs(report.costs, translate),
        sections=tuple(_section(section, translate) for section in report.sections),
    )


def _section(section: Section, translate: Callable[[str], str]) -> Section:
    """Return a section whose title, paragraphs, headers and first cells are translated, where they are texts of the core."""
    return replace(
        section, title=translate(section.title), blocks=tuple(_block(block, translate) for block in section.blocks)
    )


def _block(block: Mapping[str, Any], translate: Callable[[str], str]) -> dict[str, Any]:
    match block:
        case {"kind": "text", "text": str(text)}:
            return {**block, "text": translate(text)}
        case {"kind": "table", "header": [*header], "rows": [*rows]}:
            first = [[_cell(cell, translate) for cell in row[:1]] + list(row[1:]) for row in rows]
            return {**block, "header": [_cell(cell, translate) for cell in header], "rows": first}
        case {"kind": "examples", "examples": [*examples]}:
            return {**block, "examples": [{**e, "title": _cell(e.get("title", ""), translate)} for e in examples]}
    return dict(block)


def _cell(value: Any, translate: Callable[[str], str]) -> Any:
    return translate(value) if isinstance(value, str) else value


def _headline(found: Headline, translate: Callable[[str], str]) -> Headline:
    strip = tuple({name: translate(text) for name, text in fact.items()} for fact in found.strip)
    return replace(
        found,
        title=translate(found.title),
        text=tuple(map(translate, found.text)),
        wrong=translate(found.wrong),
        strip=strip,
    )


def _slice(table: Mapping[str, Any], translate: Callable[[str], str], names: Mapping[str, Any]) -> dict[str, Any]:
    groups = [
        {**g, "name": translated(g["name"], names), "few": translate(g["few"]) if g["few"] else g["few"]}
        for g in table["groups"]
    ]
    by = tr(table["by"]) if table["unit"] else table["by"]  # only our own tables have a unit
    return {
        **table,
        "by": by,
        "unit": tr(table["unit"]),
        "groups": groups,
        "left_out": translate(table["left_out"] or "") or None,
    }


def _costs(costs: Mapping[str, Any], translate: Callable[[str], str]) -> dict[str, Any]:
    systems = [
        {**s, "hosted_by": translate(s["hosted_by"]) if s.get("hosted_by") else None} for s in costs.get("systems", ())
    ]
    return {**costs, "systems": systems} if systems else dict(costs)
