"""A run in one archive: the same bytes each time, no secret in it, and no harm in one that comes from anywhere."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ftkit
from ftkit.console import Console
from ftkit.directory import RunDirectory
from ftkit.errors import InputError
from ftkit.run.manifest import MANIFEST, faults, files_of, seal
from ftkit.run.pack import opened, pack, refuse_code, unpack

Make = Callable[..., Any]
QUIET = Console(silent=True)


@pytest.fixture
def run(recipe: Make, fakes: ModuleType, tmp_path: Path) -> RunDirectory:
    return ftkit.run(recipe(), out=tmp_path / "runs", console=QUIET).directory


# ---------------------------------------------------------------- packing


def test_an_archive_holds_the_whole_run_and_is_the_same_each_time(run: RunDirectory, tmp_path: Path) -> None:
    (run.dir / ".work").mkdir()
    (run.dir / ".work" / "checkpoint.pkl").write_bytes(b"pickle")
    archive = pack(run)
    assert archive == run.dir.with_name(f"{run.id}.tar.gz")
    first = archive.read_bytes()
    for path in run.dir.rglob("*"):
        path.touch()
    assert pack(run, tmp_path / "other.tar.gz").read_bytes() == first
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    assert {m.name for m in members} == {f"{run.id}/{p}" for p in [*files_of(run.dir), MANIFEST]}
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in members} == {(0, 0, 0, 0o644, "")}
    with opened(archive) as back:
        assert back.id == run.id and faults(back.dir) == []
        assert {p: (back.dir / p).read_bytes() for p in files_of(back.dir)} == {
            p: (run.dir / p).read_bytes() for p in files_of(run.dir)
        }
        folder = back.dir
    assert not folder.exists(), "what was unpacked goes when the command is done"


def test_the_size_is_shown(run: RunDirectory, command: Make) -> None:
    done = command("pack", run.dir)
    bytes_ = Path(f"{run.dir}.tar.gz").stat().st_size
    assert (
        done.returncode == 0 and done.stdout.startswith(f"{run.dir}.tar.gz: ") and f"({bytes_:,} bytes)" in done.stdout
    )


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("debug.log", "login with hf_" + "aB3" * 12),
        ("state/x.json", '{"key": "sk-' + "a1B2" * 12 + '"}'),
        ("train/log.jsonl", "-----BEGIN RSA PRIVATE KEY-----\n"),
        ("debug.log", "a line\nthe token is correct-horse-battery"),
    ],
)
def test_what_looks_like_a_secret_is_refused_and_not_repeated(
    run: RunDirectory, where: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACME_API_TOKEN", "correct-horse-battery")
    run.path(where).parent.mkdir(exist_ok=True)
    with open(run.path(where), "a") as file:
        file.write(text)
    seal(run)
    with pytest.raises(InputError, match=where) as error:
        pack(run)
    assert text.split()[-1] not in str(error.value) and "correct-horse" not in str(error.value)
    assert not list(run.dir.parent.glob("*.tar.gz")) and pack(run, anyway=True).exists()


def test_a_run_that_is_not_done_or_was_changed_or_holds_a_link_is_refused(
    run: RunDirectory, recipe_file: Make, command: Make, tmp_path: Path
) -> None:
    command("run", recipe_file(), "--out", tmp_path / "other", FAKES="crash=1")
    (unfinished,) = (tmp_path / "other").iterdir()
    with pytest.raises(InputError, match="is not done"):
        pack(RunDirectory.open(unfinished))
    (run.dir / "weights").symlink_to(tmp_path)
    with pytest.raises(InputError, match="weights is a link"):
        pack(run)
    (run.dir / "weights").unlink()
    run.path("audit.json").write_text("{}")
    with pytest.raises(InputError, match=r"audit\.json: was changed"):
        pack(run)
    seal(run)
    with pytest.raises(InputError, match=r"ends in \.tar\.gz"):
        pack(run, tmp_path / "x.zip")


def test_an_older_run_without_a_manifest_can_be_packed(run: RunDirectory) -> None:
    run.path(MANIFEST).unlink()
    with opened(pack(run)) as back:
        assert not back.path(MANIFEST).exists() and back.record().status == "done"


def test_what_a_strangers_recipe_permits_does_not_count(
    run: RunDirectory, recipe: Make, command: Make, tmp_path: Path
) -> None:
    evaluators = ["fake-overlap", {"plugin": "hf-metric", "metric": "acme/metric", "allow_code": True}]
    text = run.recipe.written({**run.recipe.to_dict(), "evaluator": evaluators})
    run.path("recipe.yaml").write_text(text)
    seal(run)
    with pytest.raises(InputError, match="allow_code of evaluator 'hf-metric'"):
        refuse_code(RunDirectory.open(run.dir))
    archive = pack(run)
    for name in ("verify", "rerun"):
        done = command(name, archive)
        assert done.returncode == 2 and "--trust" in done.stderr, done.stderr


# ---------------------------------------------------------------- archives from anywhere


def archive_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return path


def file(name: str, content: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member, content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


RUN = file("run/run.json", b"{}")
HOSTILE = {
    "up": [RUN, file("run/../../evil")],
    "up at once": [file("../evil")],
    "absolute": [RUN, file("/tmp/evil")],
    "up by a backslash": [RUN, file("run/..\\..\\evil")],
    "a drive": [RUN, file("C:/evil")],
    "a stream of a file": [RUN, file("run/a.json:evil")],
    "a link": [RUN, special("run/data", tarfile.SYMTYPE, "/etc")],
    "a link, then through it": [RUN, special("run/data", tarfile.SYMTYPE, "/tmp"), file("run/data/evil")],
    "a hard link": [RUN, special("run/copy", tarfile.LNKTYPE, "/etc/passwd")],
    "a device": [RUN, special("run/disk", tarfile.BLKTYPE)],
    "a character device": [RUN, special("run/zero", tarfile.CHRTYPE)],
    "a pipe": [RUN, special("run/pipe", tarfile.FIFOTYPE)],
    "a name twice": [RUN, file("run/a"), file("run/a")],
    "a name in another case": [RUN, file("run/a"), file("run/A")],
    "a name in another form": [RUN, file("run/\u00e9"), file("run/e\u0301")],
    "a file as a folder": [RUN, file("run/a"), file("run/a/b")],
    "something hidden": [RUN, file("run/.work/checkpoint")],
    "a hidden top": [file(".ssh/authorized_keys")],
    "a control character": [RUN, file("run/a\x1b[2J")],
    "a line break": [RUN, file("run/a\nb")],
    "two runs": [RUN, file("other/run.json")],
    "no folder": [file("run.json")],
    "a deep name": [RUN, file("run/" + "a/" * 40 + "b")],
    "a long name": [RUN, file("run/" + "a" * 300)],
    "no run": [file("run/other.json")],
    "nothing": [],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_refused_and_writes_nowhere_else(
    members: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path
) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", *members)
    inner = tmp_path / "inner" / "folder"
    inner.mkdir(parents=True)
    with pytest.raises(InputError) as error:
        unpack(archive, inner)
    assert "\n" not in error.value.message and "\x1b" not in error.value.message
    outside = {p.name for p in (tmp_path / "inner").rglob("*") if not p.is_relative_to(inner)}
    assert not outside and not Path("/tmp/evil").exists()
    assert not [p for p in inner.rglob("*") if p.is_symlink() or not (p.is_file() or p.is_dir())]


def sizes() -> Iterator[tuple[str, bytes]]:
    claimed = tarfile.TarInfo("run/big")
    claimed.size = 1 << 50
    yield "a file that claims more than any disk", claimed.tobuf()
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    yield "a header that claims a terabyte", header.tobuf()
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, (1 << 20) + 1
    yield "a name of a megabyte", header.tobuf() + bytes(1 << 21)
    chain = tarfile.TarInfo("chain")
    chain.type, chain.size = tarfile.GNUTYPE_LONGNAME, 0
    yield "headers without end", chain.tobuf() * 5000
    sparse = tarfile.TarInfo("run/sparse")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 0
    yield "a sparse file", sparse.tobuf()
    yield "no archive", b"not a tar file" * 100


@pytest.mark.parametrize("content", [c for _, c in sizes()], ids=[n for n, _ in sizes()])
def test_a_bomb_is_refused_before_it_costs_memory_or_disk(content: bytes, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(content + bytes(1024)))
    (tmp_path / "to").mkdir()
    with pytest.raises(InputError):
        unpack(archive, tmp_path / "to")
    assert sum(p.stat().st_size for p in (tmp_path / "to").rglob("*")) < 1 << 20


def test_a_stream_that_gives_more_than_the_limit_ends(tmp_path: Path) -> None:
    from ftkit.run.pack import _Bounded

    stream = _Bounded(io.BytesIO(bytes(5000)), 1000, Path("a.tar.gz"))
    assert len(stream.read(1000)) == 1000
    with pytest.raises(InputError, match="more than 1,000 bytes"):
        stream.read(1)
    with pytest.raises(InputError, match="more than 1,000 bytes"):
        stream.seek(2000)


@pytest.mark.parametrize("cut", [10, 200, -30])
def test_an_archive_that_was_cut_is_one_message(run: RunDirectory, cut: int, tmp_path: Path, command: Make) -> None:
    whole = pack(run).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[:cut])
    done = command("verify", tmp_path / "cut.tar.gz")
    assert done.returncode == 2 and "cut.tar.gz" in done.stderr


def test_an_archive_that_is_not_there_or_a_folder_of_that_name(tmp_path: Path, run: RunDirectory) -> None:
    with pytest.raises(InputError, match="No such file"), opened(tmp_path / "none.tar.gz"):
        pass
    renamed = run.dir.rename(tmp_path / "folder.tar.gz")
    with opened(renamed) as back:
        assert back.dir == renamed
