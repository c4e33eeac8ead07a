"""What people see: tables that fit, progress that lives, streams of any encoding, mistakes with their line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftkit import charsets, terminal
from ftkit.console import Console, _Work
from ftkit.errors import Problem
from ftkit.recipe.excerpt import excerpt
from ftkit.recipe.load import RecipeError, load_recipe
from ftkit.text import age, duration
from ftkit.tokens import pieces, readable

Command = Callable[..., Any]
Make = Callable[..., Path]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


# ---------------------------------------------------------------- cells and tables


@pytest.mark.parametrize(
    ("text", "width"),
    [("abc", 3), ("要約", 4), ("ｱｲｳ", 3), ("e\u0301", 1), ("が", 2), ("हिन्दी", 5), ("", 0), ("한국", 4)],
)
def test_cells(text: str, width: int) -> None:
    assert terminal.cells(text) == width


def test_text_is_cut_by_cells() -> None:
    assert terminal.fit("要約の試験", 7) == "要約の…" and terminal.fit("要約の試験", 8) == "要約の…"
    assert terminal.fit("要約の試験", 10) == "要約の試験" and terminal.fit("a\nb", 9) == "a b"
    assert terminal.wrap("要約の試験 of a long line", 9) == ["要約の試", "験 of a", "long line"]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_is_never_wider_than_asked(width: int) -> None:
    head = ["システム", *(f"metric-{i}" for i in range(9)), "n", "time"]
    rows = [head, *([f"要約の実験 {i} " * 4, *(f"{i}.25" for i in range(9)), "200", "3 min 07 s"] for i in range(5))]
    text = terminal.table(rows, width, elastic=(0,))
    lines = text.split("\n")
    assert max(map(terminal.cells, lines)) <= width
    for name in head[1:]:
        assert sum(name in line.split() for line in lines) == 1, "each column stands in one of the tables"
    for part in text.split("\n\n"):
        ends = {terminal.cells(line) for line in part.split("\n")}
        assert len(ends) == 1, "the columns end in the same cell, whatever the script"


def test_the_width_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal.columns(io.StringIO()) == 80 and terminal.columns(None) == 80
    monkeypatch.setenv("COLUMNS", "100")
    assert terminal.columns(io.StringIO()) == 100
    monkeypatch.setenv("COLUMNS", "wide")
    assert terminal.columns(io.StringIO()) == 80


def test_times_are_in_words() -> None:
    assert [duration(s) for s in (4.2, 42, 1423, 5000)] == ["4.2 s", "42 s", "23 min 43 s", "1 h 23 min"]
    assert [age(s) for s in (-3, 59, 600, 7200, 86400 * 3, None)] == ["0 s", "59 s", "10 min", "2 h", "3 d", "–"]


# ---------------------------------------------------------------- progress


def test_the_time_left_goes_on_between_two_events() -> None:
    now = time.monotonic()
    work = _Work("step", 120, 500, "loss 1.20", 240.0, now, (20, 40.0))
    assert work.line() == "  step: 120/500, loss 1.20, 4 min 00 s, 12 min 40 s left"
    work.heard = now - 60
    assert work.line() == "  step: 120/500, loss 1.20, 5 min 00 s, 11 min 40 s left"
    work.heard = now - 6000  # later than expected: no negative time
    assert work.line().endswith("1 h 44 min, 0.0 s left")


def test_what_an_earlier_process_did_says_nothing_of_the_speed() -> None:
    resumed = _Work("step", 410, 500, "", 10.0, first=(410, 10.0))
    assert "left" not in resumed.line()
    assert _Work("step", 420, 500, "", 20.0, first=(410, 10.0)).line().endswith("1 min 20 s left")


class Screen:
    """A terminal of 80 columns, and what a program writes to it."""

    def __init__(self, *line: str, cwd: Path, columns: int = 80, **variables: str) -> None:
        master, slave = pty.openpty()
        import fcntl
        import struct
        import termios

        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
        env |= {"TERM": "xterm-256color", **variables}
        self.process = subprocess.Popen(line, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=env)
        os.close(slave)
        self.written = b""
        self.master = master
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone when the process is
            while part := os.read(self.master, 65536):
                self.written += part

    def text(self) -> str:
        """Wait for the program to end; return all that it wrote."""
        self.process.wait(120)
        self.reader.join(20)
        os.close(self.master)
        return self.written.decode()

    def lines(self) -> list[str]:
        """Return what stays on the screen: what a line is erased of is gone."""
        shown = [line.split("\x1b[2K")[-1].split("\r")[-1] for line in self.text().replace("\r\n", "\n").split("\n")]
        return [COLOUR.sub("", line) for line in shown]


@pytest.fixture
def screen(fake_site: Path, tmp_path: Path) -> Callable[..., Screen]:
    def start(*arguments: object, **variables: Any) -> Screen:
        line = [sys.executable, "-m", "ftkit", *map(str, arguments)]
        return Screen(*line, cwd=tmp_path, **{"PYTHONPATH": str(fake_site), **variables})

    return start


def test_a_run_on_a_terminal_of_80_columns(screen: Callable[..., Screen], recipe_file: Make) -> None:
    shown = screen("run", recipe_file(name="要約の試験-with-a-long-name"), FAKES="slow=0.3")
    lines = shown.lines()
    written = shown.written.decode()
    assert shown.process.returncode == 0, written
    assert re.search(r"\x1b\[2K  step: [1-6]/6, loss [0-9.]+", written), "the line changes"
    assert " left" in written and not re.search(r"\d:\d\d min", written)
    assert not any(re.search(r"\d+/\d+", line) for line in lines), "no line of progress stays"
    table = lines[lines.index(next(line for line in lines if line.startswith("system"))) :][:3]
    assert table[0].split() == ["system", "overlap", "%", "n", "time"] and table[1].split()[2] == "24"
    assert all(terminal.cells(line) <= 80 for line in table)
    assert any(line.startswith("next: ftkit open ") for line in lines)


def test_a_dumb_terminal_gets_no_control_characters(screen: Callable[..., Screen], recipe_file: Make) -> None:
    shown = screen("run", recipe_file(), TERM="dumb", FAKES="slow=0.02").text()
    assert "tuned is better" in shown and not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", shown)
    assert "\r" not in shown.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_on_a_terminal(
    screen: Callable[..., Screen], recipe_file: Make, variables: dict[str, str], coloured: bool
) -> None:
    shown = screen("check", recipe_file(backend={"skil": 1}), **variables).text()
    assert "skil" in shown and bool(COLOUR.search(shown)) == coloured


def test_colours_can_be_forced_into_a_pipe(command: Command, recipe_file: Make) -> None:
    for forced, coloured in (("1", True), ("0", False), ("", False)):
        done = command("preview", recipe_file(), FORCE_COLOR=forced)
        assert bool(COLOUR.search(done.stdout)) == coloured and ("«" in done.stdout) != coloured
    assert not COLOUR.search(command("preview", recipe_file(), FORCE_COLOR="1", NO_COLOR="1").stdout)


def test_check_says_what_it_does(screen: Callable[..., Screen], recipe_file: Make) -> None:
    shown = screen("check", recipe_file())
    lines = [line for line in shown.lines() if line.strip()]
    assert "reading the data" in shown.written.decode() and not any("reading the data" in line for line in lines)
    assert lines[0] == "rows: 20 train, 4 validation, 24 test"
    assert lines[1].startswith("of these: ") and lines[2].startswith("tokens: train ")
    assert re.fullmatch(r"next: ftkit run \S+recipe\.yaml", lines[-1])


def test_work_without_events_is_alive(tmp_path: Path) -> None:
    """Also where output stays, a line says that work continues: `_SILENT` seconds are not waited for here."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom ftkit import console\nconsole._SILENT = 0.2\n"
        "shown = console.Console()\n"
        "with shown.quiet(Path('log')), shown.working('prepare'):\n"
        "    shown.phase('loading the model')\n    print('noise of a library')\n    time.sleep(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert re.search(r"^  loading the model, [5-7]\.?\d* s$", done.stderr, re.MULTILINE), done.stderr
    assert "noise" not in done.stderr + done.stdout
    shown = Screen(sys.executable, "-c", program, cwd=tmp_path)
    text = shown.text()
    assert len(re.findall(r"\x1b\[2K  loading the model, ", text)) >= 4
    assert text.rstrip("\r\n").endswith("\x1b[2K"), "the line is gone at the end"


def test_a_training_without_a_clock_gets_ours(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    with console.working("train"):
        time.sleep(0.3)
        console.progress("step", 1, 3, None, "loss 0.500")
        console.progress("step", 3, 3, None)
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"  step: 1/3, loss 0\.500, 0\.[3-9] s", first) and re.fullmatch(
        r"  step: 3/3, 0\.[3-9] s", last
    )


def test_the_last_steps_are_shown_where_none_logged_them(command: Command, recipe_file: Make) -> None:
    done = command("run", recipe_file(backend={"steps": 5, "log_every": 3}))
    assert re.search(r"step: 5/5", done.stderr) and done.stderr.count("step: 5/5") == 1


def test_a_notebook_gets_one_line_without_control_sequences() -> None:
    class Cell(io.StringIO):
        """The stream of a notebook: no terminal."""

    console = Console()
    console._stream, console._notebook = Cell(), True
    with console.working("prepare"):
        for step in range(1, 4):
            console._last_progress = 0.0
            console.progress("step", step, 3, float(step))
    console.say("train: done")
    text = console._stream.getvalue()
    assert "\x1b" not in text and text.count("\n") == 1 and text.endswith("\rtrain: done\n")
    assert text.count("\r") >= 3


# ---------------------------------------------------------------- encodings of the streams


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "latin-1", "cp1252", "euc_jp", "utf-8"])
def test_no_stream_makes_a_command_fail(fake_site: Path, recipe_file: Make, tmp_path: Path, encoding: str) -> None:
    path = recipe_file(name="résumé-要約-Ω", note="🎉")
    env = {**os.environ, "PYTHONPATH": str(fake_site), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}

    def ftkit(*arguments: object) -> tuple[bytes, bytes]:
        line = [sys.executable, "-m", "ftkit", *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, cwd=tmp_path, env=env)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
        return done.stdout, done.stderr

    for arguments in (("run", path), ("check", path), ("preview", path), ("runs",), ("runs", "--csv"), ("plugins",),
                      ("recipes",), ("--help",), ("runs", "--help")):  # fmt: skip
        for stream in ftkit(*arguments):
            stream.decode(encoding)
    text = ftkit("runs")[0].decode(encoding)
    if encoding in ("ascii", "latin-1"):
        assert "\\u8981" in text
    if encoding in ("cp932", "euc_jp", "utf-8"):
        assert "要約" in text
    for arguments in (("runs", "--json"), ("check", path, "--json"), ("preview", path, "--json"), ("schema",)):
        json.loads(ftkit(*arguments)[0].decode(encoding))
    assert json.loads(ftkit("runs", "--json")[0].decode(encoding))["runs"][0]["name"] == "résumé-要約-Ω"


def test_mistakes_in_a_stream_of_ascii(command: Command, recipe_file: Make) -> None:
    done = command("check", recipe_file(backend={"習": 1}), PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and "\\u7fd2" in done.stderr


# ---------------------------------------------------------------- mistakes with their line


def test_a_mistake_shows_its_line_with_a_caret(command: Command, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "name: 試験\nbackend: {plugin: fake, skil: 1}\nevaluator: fake-overlap\ndataset: {path: x.jsonl}\n"
    )
    err = command("check", "bad.yaml").stderr.splitlines()
    at = err.index("    2 | backend: {plugin: fake, skil: 1}")
    assert (
        err[at - 2].startswith("bad.yaml:2:25: ")
        and "did you mean `skill`" in err[at - 1]
        and err[at + 1] == "      |                         ^"
    )
    assert err[-1] == "next: ftkit check bad.yaml" and err[-2] == "bad.yaml: 2 errors"


@pytest.mark.parametrize("width", [40, 80])
def test_an_excerpt_fits_and_its_caret_stands_below_the_place(tmp_path: Path, width: int) -> None:
    path = tmp_path / "r.yaml"
    line = "要約: {" + "長い名前, " * 30 + "skil: 1, " + "もっと, " * 30 + "}"
    path.write_text(f"a: 1\n{line}\n\tb\x1b[31m: 2\n")
    shown = excerpt(Problem("x", str(path), 2, line.index("skil") + 1), width)
    assert all(terminal.cells(text) <= width for text in shown)
    before = shown[1].index("^")
    text, cells = shown[0], 0
    for place, char in enumerate(text):
        if cells == before:
            assert text[place:].startswith("skil")
        cells += terminal.cells(char)
    assert "\x1b" not in "".join(excerpt(Problem("x", str(path), 3, 2), width))
    for nowhere in (Problem("x"), Problem("x", "--set"), Problem("x", str(path), 9, 1), Problem("x", str(tmp_path), 1, 1),
                    Problem("x", str(path)), Problem("x", str(tmp_path / "none.yaml"), 1, 1)):  # fmt: skip
        assert excerpt(nowhere, width) == []


GOOD = (
    "name: x\nseed: 42\ndataset: {path: rows.jsonl}\nbackend: {plugin: fake, fail: [a, b]}\nevaluator: fake-overlap\n"
)


@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ("seed: 42", "seed：42", (2, 5), "a full-width colon `：` (U+FF1A): write the ASCII `:`"),
        ("seed: 42", "seed： 42", (2, 5), "full-width colon"),
        ("seed: 42", "\u3000seed: 42", (2, 1), "a full-width space (U+3000)"),
        ("seed: 42", "seed:\u300042", (2, 6), "full-width space"),
        ("seed: 42", "seed:\xa042", (2, 6), "no-break space"),
        ("seed: 42", "seed: ４２", (2, 7), "a full-width digit `４` (U+FF14): write an ASCII digit"),
        ("seed: 42", "seed: 4２", (2, 8), "full-width digit"),
        ("plugin: fake,", "plugin: fake，", (4, 23), "a full-width comma `，`"),
        ("plugin: fake,", "plugin: fake、", (4, 23), "a Japanese comma `、`"),
        ("plugin: fake", "plugin: “fake”", (4, 19), "Unicode quote `“`"),
        ("plugin: fake", "plugin: ＂fake＂", (4, 19), "full-width quote"),
        ("backend: {", "backend: ｛", (4, 10), "full-width brace"),
        ("fail: [a, b]", "fail: ［a, b］", (4, 31), "full-width bracket"),
        ("name: x", "ｎame: x", (1, 1), "full-width letter"),
        ("seed: 42", "seed: 42 ＃ the answer", (2, 10), "full-width number sign"),
    ],
)
def test_what_an_input_method_writes_is_named(
    fakes: Any, tmp_path: Path, old: str, new: str, place: tuple[int, int], says: str
) -> None:
    path = tmp_path / "r.yaml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    found = [p for p in caught.value.problems if p.hint and says in p.hint]
    assert found and (found[0].line, found[0].column) == place, caught.value


def test_look_alikes_in_text_are_left_alone(fakes: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = (
        GOOD.replace("name: x", "name: 要約 # ：")
        + "note: 要約：試験、“要約” ［一］\nprompt: {instruction: '次の会話：、'}\n"
    )
    path.write_text(text)
    assert load_recipe(path).note == "要約：試験、“要約” ［一］"
    path.write_text(text.replace("seed: 42", "sed: 42"))
    with pytest.raises(RecipeError, match="did you mean `seed`") as caught:
        load_recipe(path)
    assert len(caught.value.problems) == 1


def test_a_full_width_equals_sign_on_the_command_line(command: Command, recipe_file: Make) -> None:
    assert "full-width `＝`" in command("check", recipe_file(), "--set", "seed＝3").stderr


# ---------------------------------------------------------------- encodings of files

JAPANESE = ["会議は三時からです。", "田中さんは来ますか？", "はい、来ると思います。", "ﾃｽﾄ ㈱山田 ①"]


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp", "utf-16-le", "utf-16-be", "iso2022_jp"])
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_data_in_a_japanese_encoding_gets_an_option_that_works(
    command: Command, recipe: Callable[..., dict[str, Any]], tmp_path: Path, encoding: str, ending: str
) -> None:
    texts = [t for t in JAPANESE if encoding in ("cp932", "utf-16-le", "utf-16-be") or "①" not in t]
    lines = [json.dumps({"input": t, "target": t}, ensure_ascii=False) for t in texts]
    lines = lines if ending == "jsonl" else ["input,target", *(f"{t},{t}" for t in texts)]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.{ending}").write_bytes("\n".join(lines).encode(encoding))
    paths = {split: str(tmp_path / f"{split}.{ending}") for split in ("train", "validation", "test")}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe(dataset={"path": paths})))
    done = command("check", "r.yaml")
    option = re.search(r"--set '(dataset\.encoding=[\w-]+)'", done.stderr)
    assert done.returncode == 2 and option, done.stderr
    again = command("check", "r.yaml", "--set", option[1])
    assert f"rows: {len(texts)} train" in again.stderr, again.stderr


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp"])
def test_a_recipe_that_is_not_utf_8_gets_the_command_that_converts_it(
    command: Command, recipe: Callable[..., dict[str, Any]], tmp_path: Path, encoding: str
) -> None:
    text = json.dumps(recipe(name="会話のようやく"), ensure_ascii=False)
    (tmp_path / "r.yaml").write_bytes(text.encode(encoding))
    done = command("check", "r.yaml")
    found = re.search(r"iconv -f \S+ -t UTF-8 .* > NEW_FILE", done.stderr)
    assert done.returncode == 2 and found, done.stderr
    subprocess.run(found[0].replace("NEW_FILE", "new.yaml"), shell=True, check=True, cwd=tmp_path)
    assert command("check", "new.yaml").returncode == 0


def test_other_text_is_not_taken_for_japanese() -> None:
    for text, encoding in (("Grüße aus Köln, wo es schön ist", "cp1252"), ("你好，今天天气很好。我们去公园吧", "gb18030"),
                           ("Привет, как дела сегодня", "cp1251"), ("안녕하세요 오늘은 날씨가", "cp949")):  # fmt: skip
        assert charsets.likely(text.encode(encoding)) is None, encoding


# ---------------------------------------------------------------- preview: characters, not bytes


def test_tokens_that_share_a_character_are_shown_as_one() -> None:
    def split(text: str) -> list[str]:
        return [bytes([b]).decode("utf-8", "surrogateescape") for b in text.encode()]

    assert [str(p) for p in pieces(split("伊a"), [False] * 4)] == ["伊³", "a"]
    two = ["は\udce4", "\udcbc\udc8a", "か"]  # tokens that hold a character and a part of the next
    assert [(p.text, p.tokens) for p in pieces(two, [True] * 3)] == [("は伊", 2), ("か", 1)]
    assert [str(p) for p in pieces(split("🎉"), [True] * 4)] == ["🎉⁴"]
    border = list(pieces(split("伊"), [False, True, True]))
    assert [p.text for p in border] == ["\\xe4", "\\xbc", "\\x8a"] and [p.trained for p in border] == [
        False,
        True,
        True,
    ]
    assert [str(p) for p in pieces(["\udcff", "x"], [False, False])] == ["\\xff", "x"]
    assert readable("\ud800") == "\\ud800"


def test_an_example_with_characters_of_several_tokens(
    command: Command, recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "rows").mkdir(exist_ok=True)
    for split in ("train", "validation", "test"):
        (tmp_path / "rows" / f"{split}.jsonl").write_text(json.dumps({"input": "伊 x", "target": "藤"}) + "\n")
    (tmp_path / "r.yaml").write_text(json.dumps(recipe(backend={"plugin": "fake", "bytes": True})))
    done = command("preview", "r.yaml")
    assert "伊³|" in done.stdout and "«藤³»" in done.stdout and "\\x" not in done.stdout
    assert "伊³: '伊' is 3 tokens" in done.stdout
    data = json.loads(command("preview", "r.yaml", "--json").stdout)["example"]
    assert data["tokens"][0] == "\\xe4" and len(data["tokens"]) == len(data["ids"])
