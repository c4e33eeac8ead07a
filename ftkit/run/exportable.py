"""Whether a model can be exported as asked: known before training, where the recipe says what will be exported."""

from __future__ import annotations

from collections.abc import Iterator

from ..api import Backend
from ..directory import RunDirectory
from ..errors import InputError
from ..records import ExportRequest, Finding


def export_findings(backend: Backend, request: ExportRequest, run: RunDirectory | None) -> Iterator[Finding]:
    """Yield what the backend finds wrong with an export. Raises InputError where it has no weights to write."""
    if type(backend).export is Backend.export:
        raise InputError(f"backend {backend.name!r} cannot export a model: it has no weights to write")
    yield from backend.check_export(request, run)
