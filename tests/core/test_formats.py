"""Files as people have them: quotes, headers, encodings, compressed, and JSON of every shape; or one clear message."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from ftkit.data.formats import Reading, column_names, read_file
from ftkit.errors import InputError

ROWS = [{"input": f"q{i}, 結衣", "target": f'a "{i}"\nb'} for i in range(30)]
ONE = [{"input": "a", "target": "b"}]


def table(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


CONTENT = {
    ".csv": table(ROWS),
    ".tsv": table(ROWS, "\t"),
    ".json": json.dumps(ROWS, ensure_ascii=False, indent=1),
    ".jsonl": lines(ROWS),
    ".ndjson": lines(ROWS),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", [*CONTENT, *(f"{e}.gz" for e in CONTENT), ".CSV", ".JSON.GZ"])
def test_every_ending_in_every_marked_encoding(tmp_path: Path, ending: str, encoding: str) -> None:
    data = CONTENT[ending.lower().removesuffix(".gz")].encode(encoding)
    path = tmp_path / f"rows{ending}"
    path.write_bytes(gzip.compress(data) if ending.lower().endswith(".gz") else data)
    assert read_file(path) == ROWS and column_names(path, ["input"]) == {"input", "target"}


@pytest.mark.parametrize("encoding", ["shift_jis", "euc_jp", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl"])
def test_an_encoding_is_told_and_then_read(tmp_path: Path, ending: str, encoding: str) -> None:
    path = tmp_path / f"rows{ending}"
    rows = [{"input": "これは長い会話です。" * 3, "target": "要約"} for _ in range(3)]
    text = table(rows) if ending == ".csv" else lines(rows)
    path.write_bytes(text.encode(encoding))
    with pytest.raises(InputError, match="not UTF-8") as caught:
        read_file(path)
    assert caught.value.hint is not None and f"--set 'dataset.encoding={encoding}'" in caught.value.hint
    assert read_file(path, Reading(encoding=encoding)) == rows
    assert column_names(path, ["input"], Reading(encoding=encoding)) == {"input", "target"}
    with pytest.raises(InputError, match=r"is not (shift_jis|ascii) \("):
        read_file(path, Reading(encoding="ascii" if encoding == "shift_jis" else "shift_jis"))


def test_what_windows_calls_shift_jis(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("input,target\n①㈱～,x\n".encode("cp932"))
    assert read_file(path, Reading(encoding="Shift-JIS")) == [{"input": "①㈱～", "target": "x"}]


def test_other_text_is_not_called_japanese(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("input,target\nrésumé à été,x\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"rows\.csv:2 is not UTF-8 \(byte 0xe9\)") as caught:
        read_file(path)
    assert caught.value.hint is not None and "encoding=cp1252" in caught.value.hint


# ---------------------------------------------------------------- tables

HEAD = "input,target\n" + "".join(f"q{i},a{i}\n" for i in range(24))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEAD + '"q24,a\n' + "q,a\n" * 5, ":26: a quote is opened in this row and not closed"),  # 30 rows would be 25
        (HEAD + '"q24" and more,a\nq,a\n', ":26: text follows the closing quote of a field of this row\n"),
        (HEAD + '"q24,a\nq25,"a, b"\n', ":27: text follows the closing quote of a field of this row, which starts on line 26"),
        (HEAD + "q24\n", ":26: fewer fields than the header names (1 and 2)"),
        (HEAD + "q24,a,b\n", ":26: more fields than the header names (3 and 2)"),
        (HEAD + "\n\nq24,a,\n", ":28: more fields"),
        ('input,target\n"a\nb\nc",x\n' + "only\n", ":5: fewer fields"),
        ("input,target,input\na,b,c\n", ":1: the header names 'input' twice (columns 1 and 3)"),
        (",input,target\n0,a,b\n", ":1: column 1 of the header has no name"),
        ("input,target, \na,b,\n", ":1: column 3 of the header has no name"),
        ("", " holds no rows: it is empty"),
        ("\n\n", " holds no rows: it is empty"),
        ("input;target\na;b\n", ":1: the header is one column, 'input;target'"),
        ("input\ttarget\na\tb\n", ":1: the header is one column"),
    ],
)  # fmt: skip
def test_a_broken_table_is_refused_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_file(path)
    assert f"{path}{says}" in f"{caught.value.message}\n" and caught.value.hint
    assert len(str(caught.value).splitlines()) == 2


def test_one_stray_quote_anywhere_never_loses_a_row_silently(tmp_path: Path) -> None:
    """With a quote put at any place of a table, either each row is still there or the file is refused."""
    rng, path = random.Random(7), tmp_path / "rows.csv"
    text = "input,target\n" + "".join(f"question {i},answer {i}\n" for i in range(30))
    refused = 0
    for at in sorted(rng.sample(range(len("input,target\n"), len(text)), 150)):
        path.write_text(text[:at] + '"' + text[at:])
        try:
            rows = read_file(path)
        except InputError:
            refused += 1
        else:
            assert len(rows) == 30 and "".join(r["input"] + r["target"] for r in rows).count('"') == 1
    assert 0 < refused < 150


@pytest.mark.parametrize(("delimiter", "ending"), [(";", ".csv"), ("|", ".csv"), ("\t", ".csv"), (",", ".tsv")])
def test_a_delimiter_is_told_and_then_read(tmp_path: Path, delimiter: str, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    path.write_text(f"input{delimiter}target\na{delimiter}b\n")
    with pytest.raises(InputError) as caught:
        read_file(path)
    written = "\\t" if delimiter == "\t" else delimiter
    assert caught.value.hint is not None and f"--set 'dataset.delimiter={written}'" in caught.value.hint
    assert read_file(path, Reading(delimiter=delimiter)) == ONE


# ---------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", lines(ROWS)),
        ("a.json", "\n" + lines(ROWS[:2]) + "\n"),
        ("a.jsonl", json.dumps(ROWS)),
        ("a.jsonl", json.dumps(ROWS, indent=2)),
        ("a.json", json.dumps({"data": ROWS})),
        ("a.json", json.dumps({"version": "1", "about": {}, "tags": ["x"], "items": ROWS}, indent=2)),
        ("a.jsonl", json.dumps({"data": ROWS}, indent=2)),
        ("a.jsonl", json.dumps({"data": ROWS})),
    ],
)
def test_json_of_another_shape_than_the_ending_says(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = read_file(tmp_path / name)
    assert found == ROWS[: len(found)] and len(found) >= 2
    assert column_names(tmp_path / name, ["input"]) == {"input", "target"}


def test_one_row_with_a_list_of_objects_stays_a_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert read_file(tmp_path / "a.jsonl") == [row]
    assert column_names(tmp_path / "a.jsonl", ["messages"]) == {"messages"}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jsonl", '{"a": 1}\n\n[1]\n', ":3: expected an object, one per line, and this is a list"),
        ("a.jsonl", '{"a": 1}\n"x"\n', ":2: expected an object, one per line, and this is text"),
        ("a.jsonl", '{"a": 1}\nnull\n', ":2: expected an object, one per line, and this is null"),
        ("a.json", '[\n{"a": 1},\n{"a": 2},\n3]', ":4: expected a list of objects, one per row; row 3 is a number"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', ":2: an object names the key 'a' twice"),
        ("a.jsonl", '{"a": 1, "a": 3}\n', ":1: an object names the key 'a' twice"),
        ("a.json", '[{"a": 1},\n{"a": 1, "a": 3}]', ": row 2: an object names the key 'a' twice"),
        ("a.json", '[{"a": 1},\n{"a": }]', ":2: cannot be read: not JSON"),
        ("a.json", '{"a": 1}\n{"a": \n', ":2: not JSON"),
        ("a.json", '{"train": [{"a": 1}], "test": [{"a": 2}]}', "holds several: train, test"),
        ("a.json", '{"input": ["a", "b"], "target": ["c", "d"]}', "without a list of objects"),
        ("a.json", '"text"', "it holds text"),
    ],
)  # fmt: skip
def test_json_that_is_no_rows_is_refused_with_its_line(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        read_file(tmp_path / name)
    assert str(tmp_path / name) in caught.value.message and says in caught.value.message


@pytest.mark.parametrize("cut", [0, 10, -1])
def test_a_broken_gz_file(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines(ROWS).encode())[:cut] or b"no gzip")
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz cannot be read: it is not a whole \.gz file"):
        read_file(path)


def test_narrow_numbers_and_double_columns_of_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    narrow = pyarrow.table({"x": pyarrow.array([0.1, None, 1e10], pyarrow.float32()), "y": ["a", "b", "c"]})
    parquet.write_table(narrow, tmp_path / "a.parquet")
    assert read_file(tmp_path / "a.parquet") == [{"x": 0.1, "y": "a"}, {"x": None, "y": "b"}, {"x": 1e10, "y": "c"}]
    double = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["x", "x"])
    parquet.write_table(double, tmp_path / "b.parquet")
    with pytest.raises(InputError, match="2 columns have the name 'x'"):
        read_file(tmp_path / "b.parquet")
