"""Launchers: the same run on another machine (`ftkit run RECIPE --on WHERE`). docs/cloud.md describes them.

`_bundle.py` packs what travels, `_remote.py` is the program that executes it there, `_engine.py` drives both over a
`Transport`, and `_ssh.py` is the transport over ssh.
"""

from __future__ import annotations

from ftkit.api import Launcher, MeasuredRun, Run
from ftkit.hookspecs import hookimpl
from ftkit.records import Cancelled

from .launchers import Dstack, HfJobs, RunPod


class Ssh(Launcher):
    """Any machine with sshd and Python: `--on ssh://user@host[:port][/dir]`."""

    name = "ssh"
    summary = "a machine that ssh reaches: --on ssh://user@host[:port][/dir]"

    def launch(self, run: Run, where: str) -> None:
        from ._ssh import destination_of, execute

        execute(run, destination_of(where))

    def is_busy(self, run: Run) -> bool:
        return run.state(self.name).get("phase") in ("starting", "started")

    def cancel(self, run: MeasuredRun, where: str, running: bool) -> Cancelled:
        from ._ssh import cancel, destination_of

        return cancel(run, destination_of(where), running)


@hookimpl
def ftkit_launchers() -> list[type[Launcher]]:
    return [Ssh, HfJobs, RunPod, Dstack]
