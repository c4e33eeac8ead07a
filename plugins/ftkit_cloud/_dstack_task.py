"""What dstack is asked for: a task that keeps a machine up until the run has ended, and no longer than its limit."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftkit.errors import InputError
from ftkit.text import nearest, quoted

from ._money import LABEL

END = "/tmp/ftkit-end"  # a file on the machine: the run has ended
# Keys of a user's task that are taken as they are; ftkit sets the rest.
KEPT = (
    *("resources", "backends", "regions", "availability_zones", "instance_types", "image", "python", "nvcc"),
    *("spot_policy", "max_price", "fleets", "volumes", "registry_auth", "privileged", "backend_options", "env"),
)
_IGNORED = ("type", "name", "max_duration")
_DISK = "100GB.."
_GRACE = 120  # seconds after the end of the run in which dstack's server deletes the machine

# The machine's own watchdog. dstack's server deletes the machine when the command ends. Where no server does so, a
# RunPod pod removes itself: it knows its id, and has a key for that, in the environment of its first process.
_WATCHDOG = """\
deadline=$(( $(date +%s) + {seconds} ))
while [ ! -e {end} ] && [ "$(date +%s)" -lt "$deadline" ]; do sleep 5; done
[ ! -e {end} ] || sleep {grace}
for name in RUNPOD_POD_ID RUNPOD_API_KEY; do
  value=$(tr '\\0' '\\n' < /proc/1/environ | sed -n "s/^$name=//p")
  [ -z "$value" ] || export "$name=$value"
done
if [ -n "$RUNPOD_POD_ID" ] && command -v runpodctl > /dev/null; then runpodctl remove pod "$RUNPOD_POD_ID"; fi
"""


def runpod_task(gpu: str, image: str | None) -> dict[str, Any]:
    """Return what is asked for with `--on runpod:GPU`: NAME, NAME:COUNT or NAME:COUNT:MEMORY, as dstack writes it."""
    counted = any(part.isdecimal() for part in gpu.split(":"))
    resources: dict[str, Any] = {"gpu": gpu if counted else f"{gpu or '24GB..'}:1", "disk": _DISK}
    return {"backends": ["runpod"], "resources": resources, **({"image": image} if image else {"python": "3.12"})}


def file_task(file: str) -> dict[str, Any]:
    """Return what is asked for with `--on dstack:FILE`. Raises InputError for what the launcher cannot keep."""
    from ruamel.yaml import YAML, YAMLError

    try:
        data = YAML(typ="safe", pure=True).load(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--on dstack:{file}: {error.strerror}", "name a file with a dstack task") from None
    except (YAMLError, UnicodeError) as error:
        raise InputError(f"{file} cannot be read as YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(data, dict) or data.get("type", "task") != "task":
        found = data.get("type") if isinstance(data, dict) else data
        raise InputError(f"{file} holds no dstack task: its type is {quoted(found)}", "write `type: task`")
    for key in data:
        if key in KEPT or key in _IGNORED:
            continue
        near = nearest(str(key), KEPT)
        hint = f"did you mean {near!r}?" if near else f"it may have: {', '.join(KEPT)}"
        raise InputError(f"{file}: {key!r} is not used: ftkit's own task has its commands and its limits", hint)
    return {key: value for key, value in data.items() if key in KEPT}


def task_of(name: str, key: str, asked: Mapping[str, Any], seconds: float, max_price: float) -> dict[str, Any]:
    """Return the whole task. `seconds` is the machine's limit; no secret stands in it."""
    limit = math.ceil(seconds)
    return {
        "type": "task",
        "name": name,
        **asked,
        "commands": [_WATCHDOG.format(seconds=limit, end=END, grace=_GRACE)],
        "max_price": round(max_price, 4),
        "max_duration": limit + 2 * _GRACE,  # the machine's own watchdog comes first
        "spot_policy": asked.get("spot_policy", "on-demand"),
        "retry": False,  # a second machine is asked for by `--resume` alone
        "idle_duration": 0,
        "tags": {LABEL: key},
    }


def as_yaml(task: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(dict(task), text)
    return text.getvalue()


def offer_arguments(asked: Mapping[str, Any]) -> list[str]:
    """Return the options of `dstack offer` that ask for the same machines."""
    resources = asked.get("resources") or {}
    found = [("--gpu", _gpu(resources.get("gpu"))), ("--disk", _range(resources.get("disk"), "size"))]
    found += [("--cpu", _range(resources.get("cpu"), "count")), ("--memory", _range(resources.get("memory"), "size"))]
    for key, option in (("backends", "--backend"), ("regions", "--region"), ("instance_types", "--instance-type")):
        found += [(option, str(value)) for value in asked.get(key) or ()]
    policy = asked.get("spot_policy", "on-demand")
    found.append(("--spot-policy", str(policy)))
    return [part for option, value in found if value is not None for part in (option, value)]


def _gpu(found: Any) -> str | None:
    if not isinstance(found, Mapping):
        return None if found is None else str(found)
    names = found.get("name")
    parts = [",".join(map(str, names)) if isinstance(names, list) else names, found.get("count"), found.get("memory")]
    return ":".join(str(part) for part in parts if part is not None) or None


def _range(found: Any, key: str) -> str | None:
    value = found.get(key) if isinstance(found, Mapping) else found
    return None if value is None else str(value)
