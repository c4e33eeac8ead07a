"""One archive of a run to send, and its safe way back: `ftkit pack RUN`, and the commands that take the archive.

An archive comes from somewhere else. So nothing in it decides where anything is written: each name is checked, only
plain files are taken, sizes are limited, and what is unpacked lies in a new temporary folder.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from ..directory import RunDirectory
from ..errors import InputError
from .lock import is_done
from .manifest import MANIFEST, faults, files_of, read_manifest
from .used import plugin_refs

SUFFIX = ".tar.gz"
_CHUNK = 1 << 20  # bytes read at a time
_LARGEST_HEADER = 1 << 20  # bytes that one read may ask for: a header that claims more is no header
_MOST_FILES = 100_000
_ALWAYS = 1 << 30  # bytes that any archive may unpack to
_RATIO = 200  # beyond that, how much larger than the archive its files may be
_RESERVE = 1 << 29  # bytes of the disk that stay free

# What a key of a known service looks like, and the name of a variable that may hold one.
_KEYS = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{32,}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{50,}|"
    rb"AKIA[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}|xox[abprs]-[A-Za-z0-9-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_SECRET_NAME = re.compile(r"KEY|TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL")
_SHORTEST_SECRET = 12  # characters: a shorter value may stand in any text
_TENSORS = (".safetensors",)


def is_archive(path: str | Path) -> bool:
    """Return whether `path` names an archive rather than a folder."""
    return str(path).endswith((SUFFIX, ".tgz")) and not Path(path).is_dir()


# ---------------------------------------------------------------- packing


def pack(run: RunDirectory, target: Path | None = None, anyway: bool = False) -> Path:
    """Write one .tar.gz of a finished run beside it, or to `target`, and return its path. The same run gives the same bytes.

    Hidden files (locks, unfinished work) are left out. Raises InputError where the run is not done, was changed since
    it was sealed, holds a link, or holds what looks like a secret; `anyway` accepts the last.
    """
    if not is_done(run.record()):
        raise InputError(f"{run.dir} is not done ({run.status()})", f"finish it first: ftkit run --resume {run.dir}")
    files = sorted(files_of(run.dir))
    links = [path for path in files if (run.dir / path).is_symlink()]
    if links:
        raise InputError(f"{run.dir / links[0]} is a link: an archive holds files alone", "put the file in its place")
    odd = next((path for path in files if not _is_plain(f"{run.id}/{path}")), None)
    if odd:
        raise InputError(f"{run.dir / odd} has a name that some systems cannot write", "rename it, or the run's folder")
    if read_manifest(run.dir) is not None:
        wrong = faults(run.dir)
        if wrong:
            raise InputError(f"{run.dir} is not as it was sealed: {wrong[0]}", f"see: ftkit verify {run.dir}")
        files = sorted([*files, MANIFEST])
    if not anyway:
        _refuse_secrets(run, files)
    target = target or run.dir.with_name(run.dir.name + SUFFIX)
    if not is_archive(target):
        raise InputError(f"--out {target}: an archive's name ends in {SUFFIX}")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with (
            open(temporary, "wb") as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path in files:
                _add(tar, run.dir / path, f"{run.id}/{path}")
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file without what differs between machines: its time, its owner, its rights."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = path.stat().st_size, 0o644
    with open(path, "rb") as file:
        tar.addfile(member, file)


def _refuse_secrets(run: RunDirectory, files: list[str]) -> None:
    """Raise InputError where a file holds a key of a known form, or the value of a variable that names a secret."""
    values = {
        value.encode(): name
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET and not os.path.exists(value)
    }
    for path in files:
        if path.endswith(_TENSORS):
            continue
        with open(run.dir / path, "rb") as file:
            for number, line in enumerate(file, 1):
                named = next((name for value, name in values.items() if value in line), None)
                if named is None and not _KEYS.search(line):
                    continue
                what = f"the value of the variable {named}" if named else "what looks like a key"
                raise InputError(
                    f"{run.dir / path}:{number} holds {what}",
                    "remove it and run again, or pack it nevertheless with --anyway",
                )


# ---------------------------------------------------------------- unpacking


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[RunDirectory]:
    """Give the run that a path names: a run directory, or an archive, unpacked for as long as the block lasts.

    Raises InputError for what is neither, and for an archive that holds anything but the plain files of one run.
    """
    if not is_archive(path):
        yield RunDirectory.open(path)
        return
    with tempfile.TemporaryDirectory(prefix="ftkit-") as folder:
        yield unpack(Path(path), Path(folder))


def refuse_code(run: RunDirectory) -> None:
    """Raise InputError where the recipe of a run from somewhere else lets code of others run on this machine."""
    if not run.path("recipe.yaml").exists():
        return
    for ref in plugin_refs(run.recipe):
        for name in getattr(ref.cls.Options, "permissions", ()):
            if getattr(ref.options, name, False):
                raise InputError(
                    f"the recipe in this archive lets code of others run here: {name} of {ref.kind} {ref.name!r}",
                    "look at recipe.yaml and files/ in the archive, and allow it with --trust",
                )


def unpack(archive: Path, folder: Path) -> RunDirectory:
    """Unpack an archive into `folder`, which is new and empty, and open its run. Raises InputError, see `opened`."""
    try:
        with open(archive, "rb") as raw:
            stream = _Bounded(cast(IO[bytes], gzip.GzipFile(fileobj=raw)), _limit(archive, folder), archive)
            with tarfile.open(fileobj=cast(Any, stream), mode="r:") as tar:
                top = _extract(tar, folder, stream)
            while stream.read(_CHUNK):
                pass  # up to its end, where gzip compares the checksum
    except InputError:
        raise
    except Exception as error:  # what a header made to do harm makes of a reader
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)[:200]
        raise InputError(f"{archive} cannot be unpacked: {why or type(error).__name__}") from None
    return RunDirectory.open(folder / top)


def _limit(archive: Path, folder: Path) -> int:
    """Return how many bytes an archive may unpack to."""
    free = shutil.disk_usage(folder).free - _RESERVE
    return max(0, min(free, max(_ALWAYS, _RATIO * archive.stat().st_size)))


class _Bounded:
    """A stream of the unpacked bytes that refuses to give more than `limit`, or too many at once."""

    def __init__(self, stream: IO[bytes], limit: int, archive: Path) -> None:
        self._stream, self.limit, self.archive = stream, limit, archive

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _LARGEST_HEADER:
            raise InputError(f"{self.archive} is not an archive of a run: a header in it is too large")
        found = self._stream.read(size)
        if self._stream.tell() > self.limit:
            raise self.too_large()
        return found

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, position: int, whence: int = 0) -> int:
        """Skip forward: `tarfile` passes over the end of what it has read."""
        if whence != 0 or position > self.limit:
            raise self.too_large()
        return self._stream.seek(position)

    def too_large(self) -> InputError:
        return InputError(
            f"{self.archive} unpacks to more than {self.limit:,} bytes, which is not taken",
            "an archive of a run is less than 200 times smaller than its files; look at where it comes from",
        )


def _extract(tar: tarfile.TarFile, folder: Path, stream: _Bounded) -> str:
    """Write the plain files of an archive into `folder`; return the name of the one folder that all of them are in."""
    archive = stream.archive
    seen: set[str] = set()
    top = None
    for count, member in enumerate(tar, 1):
        if count > _MOST_FILES:
            raise InputError(f"{archive} holds more than {_MOST_FILES:,} files")
        parts = _parts(member, archive)
        if member.isdir():
            continue
        if member.offset_data + member.size > stream.limit:
            raise stream.too_large()
        if top not in (None, parts[0]) or len(parts) < 2:
            raise InputError(f"{archive} holds more than one run: {member.name!r}")
        top = parts[0]
        # Two names that one file system takes for one name would write one file twice.
        name = unicodedata.normalize("NFC", "/".join(parts)).casefold()
        if name in seen:
            raise InputError(f"{archive} holds {member.name!r} twice")
        seen.add(name)
        _write(tar, member, folder.joinpath(*parts))
    if top is None:
        raise InputError(f"{archive} holds no file")
    return top


def _parts(member: tarfile.TarInfo, archive: Path) -> tuple[str, ...]:
    """Return the parts of a member's name. Raises InputError where it is no plain file or its name could lead elsewhere."""
    shown = repr(member.name[:200])
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise InputError(f"{archive} holds {shown}, which is no plain file (a link, a device or a pipe)")
    if not _is_plain(member.name):
        raise InputError(f"{archive} holds a name that is not one of a run's files: {shown}")
    return PurePosixPath(member.name).parts


_ODD = re.compile(r'[\x00-\x1f\x7f\ud800-\udfff\\:*?"<>|]')  # what some systems cannot write, or read otherwise


def _is_plain(name: str) -> bool:
    """Return whether a name leads to one place below a folder, the same on every system: nothing hidden, no `..`."""
    parts = name.rstrip("/").split("/")
    odd = any(not p or p.startswith(".") or p != p.strip() or len(p.encode(errors="replace")) > 255 for p in parts)
    return not odd and len(parts) <= 20 and not _ODD.search(name)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None  # it is a plain file
    left = member.size
    with open(path, "xb") as file:
        while left and (chunk := source.read(min(_CHUNK, left))):
            file.write(chunk)
            left -= len(chunk)
    if left:
        raise InputError(f"{member.name!r} ends early: the archive is not whole")
