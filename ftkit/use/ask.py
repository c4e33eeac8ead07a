"""Ask a run's model from Python: text or rows in, texts out."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..batches import plan
from ..data.asking import question_of
from ..errors import RunFailed
from ..files import Journal
from ..records import Prediction
from ..run.measure import answer
from .models import RunModels


def ask(models: RunModels, name: str, asked: str | Mapping[str, Any] | Sequence[Any], yes: bool) -> Any:
    """Return the answer to one text or row, or a list of the answers to several.

    With `generation.samples` above 1 each answer is a list of texts. Raises RunFailed where a request failed, InputError
    where something was asked that is no question or the price was not confirmed.
    """
    alone = isinstance(asked, str | Mapping)
    several: Sequence[Any] = [asked] if alone else asked  # type: ignore[assignment]
    examples = {f"asked-{n}": question_of(models.recipe, one, f"asked-{n}") for n, one in enumerate(several)}
    if not examples:
        return []
    models.ref(name)
    models.warn_of_changes(name)
    models.confirm(name, list(examples.values()), yes)
    session = models.session(name)
    batches = plan(list(examples.values()), models.backend.eval_batch_size)
    with models.console.quiet(models.log), tempfile.TemporaryDirectory() as folder:
        found = answer(
            session,
            examples,
            batches,
            models.generation,
            Journal(Path(folder, "journal")),
            name,
            models.console.progress,
        )
    failed = next((p for p in found.predictions if p.error is not None), None)
    if failed is not None:
        raise RunFailed(f"the model gave no answer: {failed.error}")
    texts = list(texts_of(found.predictions).values())
    return texts[0] if alone else texts


def texts_of(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return by example the text of its answer; a list of texts where it has several samples; None where one failed."""
    by_id: dict[str, list[Prediction]] = {}
    for p in predictions:
        by_id.setdefault(p.example_id, []).append(p)
    found: dict[str, Any] = {}
    for name, samples in by_id.items():
        texts = [None if p.error is not None else p.text for p in samples]
        found[name] = texts[0] if len(texts) == 1 else texts
    return found
