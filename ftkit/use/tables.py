"""Write rows with further columns: JSON Lines, JSON, CSV, TSV or Parquet, by the ending of the file's name."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.formats import Row, ending_of
from ..errors import InputError
from ..files import atomic, dump_json, sync_folder

_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def check_output(out: Path, path: Path) -> None:
    """Raise InputError where `out` cannot be written: its name, its folder, or it is the file that is read."""
    if out.suffix.lower() not in _ENDINGS:
        raise InputError(
            f"--out {out}: cannot write {out.suffix or 'a file without suffix'}", f"use {', '.join(_ENDINGS)}"
        )
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}", f"mkdir -p {out.parent}")
    if out.exists() and path.exists() and os.path.samefile(out, path):
        raise InputError(f"--out {out} is the file that is read", "choose another name")
    if ".parquet" in (out.suffix.lower(), path.suffix.lower()):
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise InputError(f"{out}: .parquet needs pyarrow", "pip install 'ftkit[data]'") from None


def write_rows(
    out: Path, path: Path, rows: Sequence[Row], more: Mapping[str, Sequence[Any]], delimiter: str | None
) -> None:
    """Write `rows`, read from `path`, with the columns `more`: whole, or not at all.

    Every column comes back. A .parquet file that was read keeps its types. In CSV and TSV null is empty, and what is no
    text is JSON. `delimiter` is that of the recipe, for CSV.
    """
    suffix = out.suffix.lower()
    if suffix == ".parquet":
        _write_parquet(out, path, rows, more)
        return
    whole = [{**row, **{name: values[i] for name, values in more.items()}} for i, row in enumerate(rows)]
    with atomic(out) as file:
        if suffix == ".jsonl":
            file.writelines(dump_json(_plain(row)) + "\n" for row in whole)
        elif suffix == ".json":
            file.write(dump_json([_plain(row) for row in whole], indent=2) + "\n")
        else:
            names = list(dict.fromkeys(str(name) for row in whole for name in row))
            between = "\t" if suffix == ".tsv" else delimiter if ending_of(path) in (".csv", ".csv.gz") else None
            table = csv.writer(file, delimiter=between or ",", lineterminator="\n")
            table.writerow(names)
            table.writerows([_cell(row.get(name)) for name in names] for row in whole)


def _plain(value: Any) -> Any:
    """Return what JSON can hold: dates and times of a Parquet file become ISO 8601 text, bytes are refused by JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else dump_json(_plain(value))


def _write_parquet(out: Path, path: Path, rows: Sequence[Row], more: Mapping[str, Sequence[Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    if ending_of(path) == ".parquet":
        table = pyarrow.parquet.read_table(path)
    else:
        try:
            table = pyarrow.Table.from_pylist([dict(row) for row in rows])
        except pyarrow.ArrowException as error:
            raise InputError(f"--out {out}: the rows do not fit into one table: {error}", "write .jsonl") from None
    for name, values in more.items():
        table = table.append_column(name, pyarrow.array(values))
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        pyarrow.parquet.write_table(table, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(out.parent)
