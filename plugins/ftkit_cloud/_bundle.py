"""What travels: the prepared run directory, the plugins' code where no index has it, and the versions to install."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import re
import secrets
import shutil
import subprocess
import tarfile
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from ftkit.api import Plugin, Run
from ftkit.errors import InputError
from ftkit.files import file_digest
from ftkit.plugins import PluginEntry, installed_plugins
from ftkit.text import size
from ftkit.versions import tested_versions

from ._follow import LOG, remote_lines

_SKIPPED = {"build", "dist", "node_modules", "__pycache__"}  # folders of a working copy that is no git repository
_KINDS = {"evaluator": "evaluator", "controls": "backend", "tracking": "tracker", "backend": "backend"}


def canonical(name: str) -> str:
    """Return the name of a distribution as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


@dataclass(frozen=True)
class Bundle:
    """The archive of all that travels, and what is installed there. Sizes are bytes."""

    path: Path
    size: int
    sha256: str
    requirements: tuple[str, ...]  # for pip, in the folder `sources` of the archive
    venv: str  # the name of an environment with these requirements
    needed: Mapping[str, str]  # distribution -> version, of all that the run needs
    parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name there: an upload that was broken off never mixes with a later one."""
        return self.path.name

    def summary_lines(self) -> Iterator[str]:
        """Yield what travels, one line each; `{place}` is the machine."""
        named = ", ".join(f"{what} {size(count)}" for what, count in self.parts.items())
        yield f"{size(self.size)} travel to {{place}}: {named}"


def build(run: Run, launcher: str, folder: Path, with_sources: bool = True) -> Bundle:
    """Write the archive into `folder`. `launcher` names the state that stays here; without sources, nothing is installed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    roots = _roots(run)
    needed = _closure(roots)
    path, parts = folder / f"bundle-{secrets.token_hex(4)}.tar", {}
    requirements: list[str] = []
    total = hashlib.sha256()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        parts["run directory"] = sum(_add_run(tar, run, launcher))
        if with_sources:
            constraints = _constraints(needed, roots)
            for name, extras in sorted(roots.items()):
                requirement, count, digest = _add_source(tar, name, extras)
                requirements.append(requirement)
                total.update(f"{requirement} {digest}\n".encode())
                if count:
                    parts[name] = count
            total.update(constraints)
            _add_bytes(tar, "sources/constraints.txt", constraints)
    return Bundle(
        path, path.stat().st_size, file_digest(path), tuple(requirements), total.hexdigest()[:16], needed, parts
    )


# ---------------------------------------------------------------- the run directory


def _add_run(tar: tarfile.TarFile, run: Run, launcher: str) -> Iterator[int]:
    """Add the files of the run: none that is hidden, but unfinished work, with which training resumes."""
    own = {f"state/{launcher}.json", "report.html"}
    for parent, folders, names in os.walk(run.dir):
        here = Path(parent).relative_to(run.dir)
        folders[:] = sorted(f for f in folders if not f.startswith(".") or (here == Path() and f == ".work"))
        if here == Path(".work") and "launcher" in folders:
            folders.remove("launcher")
        for name in sorted(names):
            path, inside = Path(parent, name), (here / name).as_posix()
            if name.startswith(".") or inside in own or path.is_symlink() or not path.is_file():
                continue
            target = f"{run.id}/{inside}"
            if inside == LOG:
                yield _add_bytes(tar, target, b"".join(remote_lines(path)))
            elif inside == "run.json":
                yield _add_bytes(tar, target, _record(path))
            else:
                yield _add_file(tar, path, target)


def _record(path: Path) -> bytes:
    """Return run.json as that side is to find it: what nothing was done of is prepared, the rest was interrupted."""
    data: dict[str, Any] = json.loads(path.read_text("utf-8"))
    begun = any(stage.get("name") != "prepare" for stage in data.get("stages", ()))
    return json.dumps({**data, "status": "interrupted" if begun else "prepared"}, indent=2).encode() + b"\n"


def _add_file(tar: tarfile.TarFile, path: Path, name: str) -> int:
    member = tarfile.TarInfo(name)
    with open(path, "rb") as file:
        member.size, member.mode = os.fstat(file.fileno()).st_size, 0o600
        tar.addfile(member, file)
    return member.size


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o600
    tar.addfile(member, io.BytesIO(data))
    return member.size


# ---------------------------------------------------------------- which distributions


def _roots(run: Run) -> dict[str, set[str]]:
    """Return the distributions that the run needs, each with its extras: ftkit, and those of its recipe's plugins."""
    roots: dict[str, set[str]] = {"ftkit": set()}
    for entry, options in _plugins(run.resolved_recipe()):
        distribution = canonical(entry.source.distribution)
        roots.setdefault(distribution, set())
        if entry.kind == "tracker":  # it is called on this side; that side only reads its options
            continue
        plugin: Plugin = entry.cls(entry.cls.Options(**options))
        for required in plugin.requirements():
            for text in filter(None, re.split(r"\s+(?=[A-Za-z])", required.install)):
                try:
                    requirement = Requirement(text)
                except InvalidRequirement:
                    raise InputError(
                        f"{entry.kind} {entry.name!r} names a requirement that pip cannot read: {text}"
                    ) from None
                roots.setdefault(canonical(requirement.name), set()).update(requirement.extras)
    return roots


def _plugins(recipe: Mapping[str, Any]) -> Iterator[tuple[PluginEntry, dict[str, Any]]]:
    for key, kind in _KINDS.items():
        several = recipe.get(key) or []
        for one in several if isinstance(several, list) else [several]:
            options = {name: value for name, value in one.items() if name != "plugin"}
            yield installed_plugins().find(kind, one["plugin"]), options
    source = recipe["dataset"].get("path")
    if isinstance(source, str) and source.startswith("loader:"):  # the rows travel; that side only reads its options
        entry = installed_plugins().find("dataset", source.removeprefix("loader:"))
        yield entry, {k: v for k, v in recipe["dataset"].items() if k in entry.cls.Options.model_fields}


def _closure(roots: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return every distribution that these require on this machine, and its version."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(name, extra) for name, extras in roots.items() for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                waiting += [(canonical(requirement.name), e) for e in ("", *requirement.extras)]
    return dict(sorted(found.items()))


def _constraints(needed: Mapping[str, str], roots: Iterable[str]) -> bytes:
    """Return the versions of this machine, and the tested ones of what it lacks (a GPU's packages, say).

    A local part of a version ("+cpu") is left out: each machine installs the build that fits it.
    """
    versions = {canonical(name): version for name, version in tested_versions().items()} | dict(needed)
    lines = [
        f"{name}=={version.partition('+')[0]}" for name, version in sorted(versions.items()) if name not in set(roots)
    ]
    return ("\n".join(lines) + "\n").encode()


# ---------------------------------------------------------------- code that no index has


def _add_source(tar: tarfile.TarFile, name: str, extras: Iterable[str]) -> tuple[str, int, str]:
    """Add a distribution unless it comes from an index. Return its requirement, its bytes, and the digest of its content."""
    with_extras = f"[{','.join(sorted(extras))}]" if extras else ""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name}{with_extras}", 0, ""
    origin = json.loads(distribution.read_text("direct_url.json") or "null")
    if origin is None and distribution.read_text("INSTALLER"):
        return f"{name}{with_extras}=={distribution.version.partition('+')[0]}", 0, ""
    digest = hashlib.sha256()
    if origin and origin.get("dir_info", {}).get("editable"):
        root = Path(urllib.request.url2pathname(urllib.parse.urlsplit(origin["url"]).path))
        count = 0
        for path in _working_copy(root):
            inside = path.relative_to(root).as_posix()
            data = path.read_bytes()
            digest.update(f"{inside} {len(data)} ".encode() + data)
            count += _add_bytes(tar, f"sources/{name}/{inside}", data)
        return f"./{name}{with_extras}", count, digest.hexdigest()
    wheel = f"{distribution.name.replace('-', '_')}-{distribution.version}-py3-none-any.whl"
    data = _wheel(distribution, digest)
    return f"./{wheel}{with_extras}", _add_bytes(tar, f"sources/{wheel}", data), digest.hexdigest()


def _working_copy(root: Path) -> list[Path]:
    """Return the files of a project's folder: those that git knows or would add, or all that are no build products."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "."]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
        paths = [root / os.fsdecode(name) for name in sorted(set(done.stdout.split(b"\0"))) if name]
    except (OSError, subprocess.CalledProcessError):
        paths = []
        for parent, folders, names in os.walk(root):
            kept = (f for f in folders if f not in _SKIPPED and not f.startswith(".") and not f.endswith(".egg-info"))
            folders[:] = sorted(f for f in kept if not Path(parent, f, "pyvenv.cfg").exists())
            paths += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return _followed(paths, root)


def _followed(paths: Iterable[Path], root: Path) -> list[Path]:
    """Return files alone: what a link to a folder of the project holds, in place of the link."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():  # a link
            inside = path.resolve().is_relative_to(root.resolve())
            found += sorted(p for p in path.rglob("*") if p.is_file()) if inside else []
        elif path.is_file():
            found.append(path)
    return found


def _wheel(distribution: importlib.metadata.Distribution, digest: Any) -> bytes:
    """Return an installed distribution as a wheel again. Compiled code in it would need a machine of the same kind."""
    out = io.BytesIO()
    info = None
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file in sorted(distribution.files or (), key=str):
            parts, path = file.parts, Path(str(distribution.locate_file(file)))
            if parts[0] in ("..", "/") or "__pycache__" in parts or not path.is_file():
                continue
            if parts[0].endswith(".dist-info"):
                info = parts[0]
                if parts[1] in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
                    continue
            data = path.read_bytes()
            digest.update(f"{file} {len(data)} ".encode() + data)
            wheel.writestr(zipfile.ZipInfo(str(file)), data)
        if info is None:
            raise InputError(f"{distribution.name} cannot travel: pip does not know its files", "install it with pip")
        wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "")
    return out.getvalue()
