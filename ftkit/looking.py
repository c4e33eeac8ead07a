"""Look at a recipe before it is run: what a check finds, and one example as the model sees it."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import Console
from .data.audit import audit_lines
from .errors import InputError, Problem, RecipeError
from .lang import tr
from .records import Machine, Rendered
from .text import counted
from .tokens import pieces, readable

if TYPE_CHECKING:
    from .recipe.load import Recipe

_MEASURED = 2000  # rows whose lengths a preview measures, about two seconds; a check measures all


# ---------------------------------------------------------------- check


@dataclass(frozen=True)
class Checked:
    """What a check found. `problems` are its errors, warnings and notes; `estimate` is rough."""

    problems: tuple[Problem, ...]
    audit: dict[str, Any] = field(default_factory=dict)
    estimate: dict[str, Any] = field(default_factory=dict)
    control_estimates: tuple[dict[str, Any], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the recipe can be run."""
        return not self.errors

    @property
    def errors(self) -> list[Problem]:
        return [p for p in self.problems if p.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        return [p for p in self.problems if p.level == "warning"]

    @property
    def summary(self) -> list[str]:
        """The audit in three lines; nothing where the data could not be read."""
        return audit_lines(self.audit) if self.audit else []

    def to_dict(self) -> dict[str, Any]:
        """Return what `ftkit check --json` prints."""
        return {
            "ok": self.ok,
            "errors": [p.to_dict() for p in self.errors],
            "warnings": [p.to_dict() for p in self.warnings],
            "audit": self.audit,
            "estimate": self.estimate,
            "control_estimates": list(self.control_estimates),
        }

    def __str__(self) -> str:
        said = [("" if p.level == "error" else f"{p.level}: ") + str(p) for p in self.problems]
        return "\n".join([*said, *self.summary, self.count])

    __repr__ = __str__

    @property
    def count(self) -> str:
        """ok, or how many errors there are."""
        return "ok" if self.ok else counted(len(self.errors), "error", "errors")


def check(load: Callable[[], Recipe], console: Console, gpu: Machine | None = None) -> Checked:
    """Return what can be known of the recipe that `load` gives before it is run, here or on the machine `gpu`."""
    try:
        recipe = load()
    except RecipeError as error:
        return Checked(tuple(error.problems))
    from .run.prepare import preflight, problems_of

    with tempfile.TemporaryDirectory() as folder, console.quiet(Path(folder, "log")), console.working("check"):
        found = preflight(recipe, console, gpu)
    problems = problems_of(recipe, found.findings)
    return Checked(tuple(problems), found.audit, found.estimate, tuple(found.control_estimates))


# ---------------------------------------------------------------- preview


@dataclass(frozen=True)
class Preview:
    """One example as the model sees it, out of `rows` rows of its split.

    `lengths` are those of the split's first rows: median, p95, max, and how many lose tokens to the limit, which the recipe's
    key `limit_key` sets.
    """

    example: Rendered
    split: str
    rows: int
    lengths: dict[str, Any]
    limit_key: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what `ftkit preview --json` prints; bytes that are part of a character are \\xNN."""
        example = replace(self.example, tokens=tuple(map(readable, self.example.tokens)))
        return {"example": example.to_dict(), "rows": self.rows, "lengths": self.lengths}

    @property
    def facts(self) -> list[str]:
        """What to know of the example and its split, one sentence a line."""
        shown = self.example
        lines = [f"{shown.finding.level}: {shown.finding.message}"] if shown.finding else []
        lines += [f"  {shown.finding.hint}"] if shown.finding and shown.finding.hint else []
        lines.append(
            f"{len(shown.ids)} tokens: {shown.n_prompt} of the prompt, {sum(shown.loss_mask)} in the loss mask"
        )
        shared = next((p for p in pieces(shown.tokens, shown.loss_mask) if p.tokens > 1), None)
        if shared:
            lines.append(f"{shared}: {shared.text!r} is {shared.tokens} tokens")
        if any(shown.truncated):
            lines.append(f"cut off: {shown.truncated[0]} prompt tokens, {shown.truncated[1]} target tokens")
        return lines + [self._lengths(name, f) for name, f in self.lengths.items() if isinstance(f, dict)]

    def _lengths(self, name: str, facts: Mapping[str, Any]) -> str:
        seen = facts["rendered"]
        which = f"the first {seen:,} of {self.rows:,} rows" if seen < self.rows else f"all {self.rows:,} rows"
        lengths = f"median {facts['median']:.0f}, 95 % below {facts['p95']:.0f}, longest {facts['max']} tokens"
        lose = ", ".join(
            f"{counted(n, 'loses', 'lose')} {part} tokens"
            for part in ("prompt", "target")
            if (n := facts[f"lose_{part}_tokens"])
        )
        lost = f"; {lose}{f' ({self.limit_key})' if self.limit_key else ''}" if lose else ""
        return f"{name}, {which}: {lengths}{lost}"

    def __str__(self) -> str:
        """Return the tokens, each ended by | or, where it is trained on, in «», and the facts."""
        return "\n".join([self.text, "", *self.facts])

    __repr__ = __str__

    @property
    def text(self) -> str:
        """The tokens, each ended by | or, where it is trained on, in «»."""
        shown = self.example
        return "".join(
            f"«{piece}»" if piece.trained else f"{piece}|" for piece in pieces(shown_tokens(shown), shown.loss_mask)
        )

    def _repr_html_(self) -> str:
        shown = self.example
        marked = "".join(
            f"<{tag}>{html.escape(str(piece))}</{tag}>"
            for piece in pieces(shown_tokens(shown), shown.loss_mask)
            for tag in ["mark" if piece.trained else "span"]
        )
        return f'<pre style="white-space:pre-wrap">{marked}</pre><pre>{html.escape(chr(10).join(self.facts))}</pre>'


def shown_tokens(shown: Rendered) -> Sequence[str]:
    """Return the tokens with spaces and line breaks made visible."""
    return [token.replace(" ", "·").replace("▁", "·").replace("\n", "⏎\n") for token in shown.tokens]


def preview(recipe: Recipe, split: str, index: int, console: Console) -> Preview:
    """Return one example of a split, counted from 0, as the recipe's backend sees it. Raises InputError where it cannot."""
    from .data.task import load_task
    from .run.prepare import token_lengths

    with tempfile.TemporaryDirectory() as folder, console.quiet(Path(folder, "log")), console.working("preview"):
        console.phase(tr("reading the data"))
        task, _ = load_task(recipe)
        rows = task.splits.get(split, ())
        if not -len(rows) <= index < len(rows):
            raise InputError(f"the {split} split has {len(rows)} rows: there is no row {index}")
        backend = recipe.backend.make()
        try:
            console.phase(tr("loading the tokenizer"))
            shown = next(iter(backend.render([rows[index]])))
            lengths = token_lengths(backend, replace(task, splits={split: rows[:_MEASURED]}), console)
        except NotImplementedError as error:
            raise InputError(str(error)) from None
    limit = backend.length_limit
    return Preview(shown, split, len(rows), lengths, limit.key if limit else None)
