"""Do the installed packages fit together, and are they the versions that were tested together?

Requirements are those that the packages state themselves; the tested versions are constraints.txt, which ftkit ships.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from ..records import Diagnosis
from ..text import counted
from ..versions import packages, tested_versions

_SHOWN = 3  # differing versions that the line names
_CORE = "ftkit"
SECTION = "version mismatch"


@dataclass(frozen=True)
class Clash:
    """A package and what it needs: `has` is the version that is there, or None."""

    package: str
    version: str
    needs: Requirement
    has: str | None
    hidden: bool = False  # it lies in a folder in front of site-packages

    def __str__(self) -> str:
        there = f"{self.needs.name} {self.has} is installed" if self.has else "it is not installed"
        return f"{self.package} {self.version} needs {self.needs.name}{self.needs.specifier}, and {there}"

    @property
    def fix(self) -> str:
        """What makes the two fit. A folder in front of site-packages hides what pip installs."""
        if self.has and self.hidden:
            return f"remove the folder with {self.needs.name} {self.has} from PYTHONPATH: it hides what pip installed"
        return f"pip install '{self.wanted}'"

    @property
    def wanted(self) -> str:
        """The requirement that pip is to install: the tested version where it fits."""
        tested = tested_versions().get(canonicalize_name(self.needs.name))
        if tested and self.needs.specifier.contains(tested, prereleases=True):
            return f"{self.needs.name}=={tested}"
        return f"{self.needs.name}{self.needs.specifier}"


def python_diagnosis() -> Diagnosis:
    """Say whether this Python is one that ftkit supports."""
    wanted = importlib.metadata.metadata(_CORE)["Requires-Python"] or ""
    version = ".".join(map(str, sys.version_info[:3]))
    if Requirement(f"python{wanted}").specifier.contains(version, prereleases=True):
        return Diagnosis("Python", True, version)
    fix = f"make an environment with Python {wanted}, and install ftkit there"
    return Diagnosis("Python", False, f"{version}; ftkit needs {wanted}", fix, SECTION)


def package_diagnoses(modules: Iterable[str] | None) -> Iterator[Diagnosis]:
    """Yield what clashes, and what differs from the tested versions: of all packages that belong to ftkit.

    With `modules`, of those only that these modules and ftkit itself need.
    """
    looked_at = _needed(modules)
    clashes = [clash for name in sorted(looked_at) for clash in _clashes(name, looked_at)]
    for clash in clashes:
        yield Diagnosis("packages", False, str(clash), clash.fix, SECTION)
    if clashes:
        return
    tested = tested_versions()
    different = [
        f"{name} {version} (tested: {tested[name]})"
        for name in sorted(looked_at)
        if (version := _installed().get(name)) and name in tested and not _same(version, tested[name])
    ]
    if not different:
        yield Diagnosis("packages", True, f"{counted(len(looked_at), 'package', 'packages')}, in the tested versions")
        return
    more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
    text = f"they fit together; not the tested version: {', '.join(different[:_SHOWN])}{more}"
    yield Diagnosis("packages", None, text, see=SECTION)


@functools.cache
def _installed() -> dict[str, str]:
    """Return the version of each package as Python imports it, by its normalised name."""
    return {canonicalize_name(name): package.version for name, package in packages().items()}


@functools.cache
def _overlays() -> set[str]:
    return {canonicalize_name(name) for name, package in packages().items() if package.origin == "overlay"}


def _needed(modules: Iterable[str] | None) -> set[str]:
    """Return the installed packages that ftkit needs, directly or through others."""
    owners = importlib.metadata.packages_distributions()
    if modules is None:
        start = {canonicalize_name(r.name) for r in _requirements(_CORE, optional=True)}
    else:
        start = {canonicalize_name(owner) for module in modules for owner in owners.get(module, (module,))}
    found: set[str] = set()
    waiting = [_CORE, *start]
    while waiting:
        name = waiting.pop()
        if name in _installed() and name not in found:
            found.add(name)
            waiting += [canonicalize_name(r.name) for r in _requirements(name)]
    return found


@functools.cache
def _requirements(name: str, optional: bool = False) -> tuple[Requirement, ...]:
    """Return what a package says that it needs here; with `optional`, also what any of its extras needs."""
    try:
        about = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return ()
    extras = ["", *(about.metadata.get_all("Provides-Extra") or ())] if optional else [""]
    found = []
    for text in about.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            found.append(requirement)
    return tuple(found)


def _clashes(name: str, looked_at: set[str]) -> Iterator[Clash]:
    """Yield the requirements of one package that are not met. Of ftkit's extras, only those of packages in `looked_at`."""
    version = _installed()[name]
    always = _requirements(name)
    for requirement in _requirements(name, optional=name == _CORE):
        needed = canonicalize_name(requirement.name)
        has = _installed().get(needed)
        if requirement not in always and needed not in looked_at:
            continue
        if has is None or not _fits(has, requirement):
            yield Clash(name, version, requirement, has, needed in _overlays())


def _fits(version: str, requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True  # of a package whose files name no version


def _same(version: str, tested: str) -> bool:
    """Compare without what follows `+`: 2.13.0+cu130 is a build of 2.13.0."""
    return version.split("+")[0] == tested.split("+")[0]
