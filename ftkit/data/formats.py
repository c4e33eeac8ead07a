"""The rows of one file: .jsonl, .json, .csv and .tsv, each also compressed as .gz, and .parquet."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..charsets import PEEK, SUPERSETS, conversion, is_iso2022_jp, likely
from ..errors import InputError
from ..text import counted, one_line

Row = Mapping[str, Any]

_PLAIN = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
ENDINGS = (*_PLAIN, *(f"{ending}.gz" for ending in _PLAIN), ".parquet")
_WRAPPERS = ("data", "rows", "examples", "records", "instances", "items")  # keys that hold all rows of a file
_GAP = re.compile(r"[\s,]*")  # between two rows of a JSON array
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
         codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
csv.field_size_limit(1 << 30)


@dataclass(frozen=True)
class Reading:
    """How text files are read. `option` is how a message writes one of these keys with a value."""

    delimiter: str | None = None  # between the fields of .csv and .tsv files; default: comma, tab
    encoding: str | None = None  # default: UTF-8, or what the file's byte order mark says
    option: str = "--set 'dataset.{}={}'"


def ending_of(path: Path) -> str | None:
    """Return the ending that says how a file is read (".csv.gz"), or None where it cannot be read."""
    name = path.name.lower()
    return next((ending for ending in ENDINGS if name.endswith(ending)), None)


def read_file(path: Path, reading: Reading = Reading()) -> list[Row]:
    """Return the rows of one file. Raises InputError with the line of what is wrong."""
    ending = ending_of(path)
    if ending is None:
        what = path.suffix or "a file without suffix"
        raise InputError(f"{path}: cannot read {what}", f"use {', '.join(_PLAIN)} (or one of these with .gz), .parquet")
    try:
        if ending == ".parquet":
            return _parquet_rows(path)
        text = _read_text(path, reading)
        if _is_table(ending):
            return list(_table(path, text, _delimiter(ending, reading), reading))
        return _json_rows(path, text, lines=ending.removesuffix(".gz") != ".json")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error, 200)}") from None


def column_names(path: Path, wanted: Iterable[str], reading: Reading = Reading()) -> set[str]:
    """Return the columns of a file: those of its first rows, or of all where a wanted one is not among these."""
    if ending_of(path) == ".parquet":
        return set(_parquet(path).schema_arrow.names)
    names = {str(name) for row in _first_rows(path, reading) for name in row}
    lacking = set(wanted) - names
    # A table names all its columns at once; in JSON a column may be in later rows alone.
    if names and (not lacking or _is_table(ending_of(path)) or not _mentioned(path, lacking, reading)):
        return names
    return {str(name) for row in read_file(path, reading) for name in row}


def _mentioned(path: Path, names: Iterable[str], reading: Reading) -> bool:
    """Return whether any of the columns can be in the file: parsing a large one to say no takes too long."""
    text = _read_text(path, reading)
    return any(not re.fullmatch(r"[\w .-]+", name, re.ASCII) or f'"{name}"' in text for name in names)


def _first_rows(path: Path, reading: Reading, count: int = 100) -> list[Row]:
    """Return some of the first rows, perhaps none: a quick look, which is no error where the file is broken."""
    rows: list[Any] = []
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            data = file.read(PEEK)
        whole = len(data) < PEEK
        text = codecs.getincrementaldecoder(_codec(data, reading))().decode(data).removeprefix("\ufeff")
        ending = ending_of(path)
        if _is_table(ending):
            found = _table(path, text, _delimiter(ending, reading), reading)
            header = next(found, None)
            rows = [header] if header is not None else []
        elif text.lstrip().startswith("["):
            rows = [row for _, row in itertools.islice(_items(text), count)]
        else:
            lines = text.split("\n")[: None if whole else -1]
            rows = [json.loads(line) for line in lines[:count] if line.strip()]
            rows = [] if len(rows) == 1 else rows  # it may be one object around all rows
    except (OSError, EOFError, zlib.error, ValueError, RecursionError, InputError):
        pass
    return [row for row in rows if isinstance(row, dict)]


# ---------------------------------------------------------------- text


def _read_text(path: Path, reading: Reading) -> str:
    data = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path} cannot be read: it is not a whole .gz file ({error})") from None
    name = _codec(data, reading)
    try:
        text = data.decode(name).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        called = (reading.encoding or "UTF-8") if name not in _BOMS.values() else name.upper().removesuffix("-SIG")
        byte = f"byte 0x{data[error.start]:02x}" if error.start < len(data) else "its end"
        raise InputError(f"{path}:{line} is not {called} ({byte})", _encoding_hint(path, data, reading)) from None
    if is_iso2022_jp(data[:PEEK]) and not reading.encoding:
        raise InputError(f"{path} is not UTF-8: it holds escape sequences", _encoding_hint(path, data, reading))
    if "\0" in text[:1000] and not reading.encoding:
        raise InputError(f"{path} is not UTF-8: it looks like UTF-16", _encoding_hint(path, data, reading))
    return text


def _codec(data: bytes, reading: Reading) -> str:
    """Return the codec of a file: a byte order mark says it, then the recipe, then it is UTF-8."""
    marked = next((name for bom, name in _BOMS.items() if data.startswith(bom)), None)
    if marked or not reading.encoding:
        return marked or "utf-8"
    name = codecs.lookup(reading.encoding).name
    return SUPERSETS.get(name, name)


def _encoding_hint(path: Path, data: bytes, reading: Reading) -> str:
    found = likely(data)
    if found:
        called = "UTF-16" if found.startswith("utf-16") else found
        return f"it looks like {called}: {reading.option.format('encoding', found)}"
    how = reading.option.format("encoding", "cp1252")
    return f"say which encoding it has: {how}, or shift_jis, euc_jp, gb18030, ...; or convert it: {conversion(str(path), None)}"


# ---------------------------------------------------------------- tables


def _is_table(ending: str | None) -> bool:
    return ending is not None and ending.startswith((".csv", ".tsv"))


def _delimiter(ending: str | None, reading: Reading) -> str:
    return reading.delimiter or ("\t" if ending and ending.startswith(".tsv") else ",")


def _table(path: Path, text: str, delimiter: str, reading: Reading) -> Iterator[Row]:
    """Yield the rows of a table; its first line names the columns."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    start = 1  # line of the row that is read next
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            _bad_quotes(path, start, reader.line_num, str(error))
        line, start = start, reader.line_num + 1
        if not fields or (len(fields) == 1 and not fields[0].strip() and len(header or "..") > 1):
            continue  # an empty line
        if header is None:
            header = _header(path, line, fields, delimiter, reading)
        elif len(fields) != len(header):
            more = len(fields) > len(header)
            what = "more" if more else "fewer"
            hint = "quote what holds the delimiter" if more else "quote what holds a line break; leave no field out"
            raise InputError(
                f"{path}:{line}: {what} fields than the header names ({len(fields)} and {len(header)})",
                f'{hint}; inside quotes, a quote is written twice ("")',
            )
        else:
            yield dict(zip(header, fields, strict=True))
    if header is None:
        raise InputError(f"{path} holds no rows: it is empty", "its first line must name the columns")


def _header(path: Path, line: int, names: list[str], delimiter: str, reading: Reading) -> list[str]:
    for number, name in enumerate(names, 1):
        if not name.strip():
            hint = "give it a name (pandas: to_csv(..., index=False) leaves the row numbers out)"
            raise InputError(f"{path}:{line}: column {number} of the header has no name", hint)
        if name in names[: number - 1]:
            both = f"columns {names.index(name) + 1} and {number}"
            raise InputError(f"{path}:{line}: the header names {name!r} twice ({both})", "rename one of them")
    if len(names) == 1:
        other = next((mark for mark in ";\t|," if mark != delimiter and mark in names[0]), None)
        if other:
            how = reading.option.format("delimiter", "\\t" if other == "\t" else other)
            called = "a tab" if other == "\t" else f"{other!r}"
            raise InputError(
                f"{path}:{line}: the header is one column, {names[0]!r:.60}", f"if {called} separates columns: {how}"
            )
    return names


def _bad_quotes(path: Path, start: int, line: int, error: str) -> NoReturn:
    hint = 'inside quotes, a quote is written twice (""); text that starts with a quote stands in quotes'
    if "end of data" in error:
        raise InputError(f"{path}:{start}: a quote is opened in this row and not closed before the file ends", hint)
    if "expected after" in error:
        where = f", which starts on line {start}" if start != line else ""
        raise InputError(f"{path}:{line}: text follows the closing quote of a field of this row{where}", hint)
    raise InputError(f"{path}:{line}: {error}")


# ---------------------------------------------------------------- JSON


class _Doubled(ValueError):
    """An object names a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Doubled(f"an object names the key {next(n for n in names if names.count(n) > 1)!r} twice")
    return found


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _json_rows(path: Path, text: str, lines: bool) -> list[Row]:
    """Return the rows of a JSON array, of an object around one, or of JSON Lines, whatever the ending says.

    `lines`: the ending says JSON Lines.
    """
    if lines and not text.lstrip().startswith("["):
        first = next((line for line in text.split("\n") if line.strip()), "{}")
        try:
            _loads(first)
        except _Doubled:
            pass
        except (ValueError, RecursionError):  # perhaps one object over several lines
            found = _whole(text)
            if found is not None:
                return _rows_of(path, text, found)
        rows = _json_lines(path, text)
        around = [rows[0][key] for key in _WRAPPERS if key in rows[0]] if len(rows) == 1 else []
        if len(around) == 1 == len(_tables(rows[0])) and around[0] in _tables(rows[0]).values():
            return list(around[0])
        return rows
    try:
        return _rows_of(path, text, _loads(text))
    except json.JSONDecodeError as error:
        first = next((line for line in text.split("\n") if line.strip()), "")
        if error.msg == "Extra data" and (lines or isinstance(_whole(first), dict)):
            return _json_lines(path, text)
        raise InputError(f"{path}:{error.lineno}: cannot be read: not JSON: {error}") from None
    except _Doubled as error:
        number = len([line for line, _ in _items(text)]) + 1  # those before it are read
        raise InputError(f"{path}: row {number}: {error}", "remove one of the two") from None


def _whole(text: str) -> Any:
    try:
        return _loads(text)
    except (ValueError, RecursionError):
        return None


def _json_lines(path: Path, text: str) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if not line.strip():
            continue
        try:
            row = _loads(line)
        except _Doubled as error:
            raise InputError(f"{path}:{number}: {error}", "remove one of the two") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}:{number}: expected an object, one per line, and this is {_kind(row)}")
        rows.append(row)
    return rows


def _rows_of(path: Path, text: str, found: Any) -> list[Row]:
    """Return the rows that a whole JSON document holds: it is a list of them, or an object around one list."""
    wanted = "expected a list of objects, one per row"
    if isinstance(found, dict):
        tables = _tables(found)
        if len(tables) == 1:
            return list(next(iter(tables.values())))
        if tables:
            raise InputError(f"{path}: {wanted}; the object in it holds several: {', '.join(tables)}",
                             "write each to a file, and name them: dataset.path: {train: ..., test: ...}")  # fmt: skip
        raise InputError(f"{path}: {wanted}; it holds one object, without a list of objects in it")
    if not isinstance(found, list):
        raise InputError(f"{path}: {wanted}; it holds {_kind(found)}")
    for number, row in enumerate(found):
        if not isinstance(row, dict):
            line = next((line for line, _ in itertools.islice(_items(text), number, None)), 1)
            raise InputError(f"{path}:{line}: {wanted}; row {number + 1} is {_kind(row)}")
    return list(found)


def _tables(found: Row) -> dict[str, list[Row]]:
    """Return the lists of objects that an object holds, by key."""
    return {
        str(key): value
        for key, value in found.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    }


def _items(text: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, item) of a JSON array, as far as it can be read."""
    decoder, at, line, seen = json.JSONDecoder(object_pairs_hook=_object), text.find("[") + 1, 1, 0
    while at:
        at = _GAP.match(text, at).end()  # type: ignore[union-attr]
        line, seen = line + text.count("\n", seen, at), at
        try:
            item, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        yield line, item


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "an object", str: "text", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


# ---------------------------------------------------------------- Parquet


def _parquet(path: Path) -> Any:
    """Open a .parquet file."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{path}: reading .parquet needs pyarrow", "pip install 'ftkit[data]'") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error, 200)}") from None


def _parquet_rows(path: Path) -> list[Row]:
    file = _parquet(path)
    import pyarrow.compute

    try:
        table = file.read()
        names = table.schema.names
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            both = counted(names.count(double), "column", "columns")
            raise InputError(f"{path}: {both} have the name {double!r}", "rename them")
        for number, part in enumerate(table.schema):
            if part.type in (pyarrow.float16(), pyarrow.float32()):  # by way of text: 0.1 stays 0.1
                text = pyarrow.compute.cast(table.column(number).cast(pyarrow.float32()), pyarrow.string())
                table = table.set_column(number, part.name, text.cast(pyarrow.float64()))
        rows: list[Row] = table.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error, 200)}") from None
    return rows
