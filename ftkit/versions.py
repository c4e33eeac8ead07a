"""Versions of packages as Python imports them: a folder in front of site-packages hides what is installed there."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import re
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_SITE = {"site-packages", "dist-packages"}
_VERSION = re.compile(r"""^__version__\s*(?::[^=]+)?=\s*["']([^"']+)["'][ \t]*(?:#.*)?$""", re.M)
_VERSION_FILES = ("__init__.py", "version.py", "_version.py", "__about__.py")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Package:
    """`version` is "unknown" where the files that are imported do not name one; `origin` says where they lie.

    `origin` is "installed" (in site-packages), "editable" (pip's link to a working copy) or "overlay" (any other
    folder on the import path). The path itself may name a user, and is not recorded.
    """

    version: str
    origin: str


def packages() -> dict[str, Package]:
    """Return every package that Python would import, by the name of its distribution, or of its module where it has none."""
    found = {name: _as_installed(dist) for name, dist in _distributions().items()}
    owners = _owners()
    for module in _candidates():
        package = package_of(module)
        if package is not None and package.origin == "overlay":
            for name in owners.get(module, (module,)):
                if name in owners.get(module, ()) or package.version != UNKNOWN:
                    found[name] = package
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


@functools.cache
def tested_versions() -> dict[str, str]:
    """Return the version of each package that was tested with the others (constraints.txt), by its normalised name."""
    from packaging.utils import canonicalize_name

    lines = (Path(__file__).parent / "constraints.txt").read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version.strip() for name, version in pairs}


def reinstall(module: str) -> str:
    """Return what brings a sound copy of a module that does not work: a pip line, in the tested version where there is one."""
    found = package_of(module)
    if found is not None and found.origin == "overlay":
        return f"remove {_location(module)} from PYTHONPATH: it hides the {module} that pip installed"
    name = next(iter(_owners().get(module, ())), module)
    tested = tested_versions().get(name.lower().replace("_", "-"))
    return f"pip install --force-reinstall '{name}{f'=={tested}' if tested else ''}'"


def package_of(module: str) -> Package | None:
    """Return the version and origin of a top-level module as Python imports it, without importing it; None if it cannot."""
    folder = _location(module)
    if folder is None:
        return None
    names = _owners().get(module, ())
    for name in names:
        dist = _distributions()[name]
        if Path(str(dist.locate_file(""))).resolve() == folder:
            return _as_installed(dist)
        working_copy = _editable(dist)
        if working_copy is not None and folder.is_relative_to(working_copy):
            return Package(_written(folder, module) or dist.version, "editable")
    loaded = getattr(sys.modules.get(module), "__version__", None)
    version = _beside(folder, module) or _written(folder, module) or (loaded if isinstance(loaded, str) else UNKNOWN)
    return Package(version, "installed" if folder.name in _SITE else "overlay")


def _as_installed(dist: importlib.metadata.Distribution) -> Package:
    if _editable(dist) is not None:
        return Package(dist.version, "editable")
    return Package(dist.version, "installed" if Path(str(dist.locate_file(""))).name in _SITE else "overlay")


@functools.cache
def _distributions() -> dict[str, importlib.metadata.Distribution]:
    """Return the distributions by name; of several with one name, the first on the import path, as Python imports it.

    In a working copy that pip links to, the build leaves an `.egg-info` folder: there the link is what is installed.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    for dist in importlib.metadata.distributions():
        name = dist.metadata["Name"]
        if name:
            first = found.setdefault(name, dist)
            if _editable(dist) == Path(str(first.locate_file(""))).resolve():
                found[name] = dist
    return found


@functools.cache
def _owners() -> Mapping[str, list[str]]:
    """Return the distributions that hold each top-level module."""
    return {m: list(dict.fromkeys(names)) for m, names in importlib.metadata.packages_distributions().items()}


def _editable(dist: importlib.metadata.Distribution) -> Path | None:
    """Return the working copy that an editable install links to; None for any other install."""
    try:
        about = json.loads(dist.read_text("direct_url.json") or "{}")
        if not about["dir_info"]["editable"]:
            return None
        return Path(urllib.request.url2pathname(urllib.parse.urlsplit(about["url"]).path)).resolve()
    except (ValueError, KeyError, TypeError):
        return None


def _candidates() -> Iterator[str]:
    """Yield the modules that may lie outside of site-packages: those in other folders of the import path, and loaded ones."""
    names: dict[str, None] = {}
    for entry in map(Path, filter(None, sys.path)):
        if entry.name in _SITE or not entry.is_dir() or (entry / "site-packages").is_dir():
            continue  # the folder around site-packages is that of the standard library
        for path in entry.iterdir():
            if path.suffix == ".py" or (path / "__init__.py").is_file():
                names[path.stem] = None
    names |= dict.fromkeys(name for name, module in sys.modules.items() if hasattr(module, "__version__"))
    known = sys.stdlib_module_names
    yield from (n for n in names if "." not in n and n not in known and n != "__main__")


def _location(module: str) -> Path | None:
    """Return the folder on the import path that holds the module which is loaded, or would be."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    try:
        spec = spec or importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or spec.origin in (None, "built-in", "frozen"):
        return None
    path = Path(str(spec.origin)).resolve()
    return path.parent.parent if path.stem == "__init__" else path.parent


def _beside(folder: Path, module: str) -> str | None:
    """Return the version that metadata in the same folder names, as `pip install --target` writes them."""
    for dist in importlib.metadata.distributions(path=[str(folder)]):
        tops = (dist.read_text("top_level.txt") or "").split() or [str(dist.metadata["Name"] or "").replace("-", "_")]
        if module.lower() in (top.lower() for top in tops):
            return dist.version
    return None


def _written(folder: Path, module: str) -> str | None:
    """Return the `__version__` that stands in the module's files as a constant."""
    for path in (folder / f"{module}.py", *(folder / module / name for name in _VERSION_FILES)):
        try:
            match = _VERSION.search(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if match:
            return match.group(1)
    return None
