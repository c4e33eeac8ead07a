"""The launchers of rented machines: light classes; what they do stands in the `_*.py` files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from ftkit.api import Launcher, MeasuredRun, Requires, Run
from ftkit.errors import InputError
from ftkit.records import Cancelled, Diagnosis

from ._money import CloudOptions, Ledger


class HfJobsOptions(CloudOptions):
    namespace: str | None = Field(None, description="The organization that pays; by default your own account.")


class HfJobs(Launcher):
    """Hugging Face Jobs: billed by the minute, and ended by Hugging Face itself at the time limit."""

    name = "hf-jobs"
    summary = "a Hugging Face Job: --on hf-jobs:a10g-small"
    Options = HfJobsOptions
    requires = Requires(("huggingface_hub", "hf_xet"), "huggingface_hub>=2.4")

    def estimate(self, where: str, estimates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        from ._hf_jobs import estimate

        return estimate(where, self.options)

    def launch(self, run: Run, where: str) -> Mapping[str, Any]:
        from ._hf_jobs import launch

        return launch(run, where, self.options)

    def is_busy(self, run: Run) -> bool:
        return _is_busy(run, self.name)

    def cancel(self, run: MeasuredRun, where: str, running: bool) -> Cancelled:
        from ._hf_jobs import cancel

        return cancel(run, where, self.options, running)

    @classmethod
    def diagnose(cls, options: Any = None) -> Iterable[Diagnosis]:
        from ._cloud_doctor import hf_jobs

        yield from super().diagnose(options)
        yield from hf_jobs()


def _is_busy(run: Run, name: str) -> bool:
    """Whether a machine of the run may still be there."""
    return run.state(name).get("phase") in ("starting", "started") or Ledger(run, name).open() is not None


class DstackOptions(CloudOptions):
    max_price: float | None = Field(None, gt=0, description="The highest price an hour, in dollars.")


class RunPod(Launcher):
    """A RunPod pod through dstack, which is installed on its own."""

    name = "runpod"
    summary = "a RunPod pod through dstack: --on runpod:A100"
    Options: ClassVar[type[DstackOptions]] = DstackOptions

    def asked(self, where: str) -> dict[str, Any]:
        """Return what dstack is asked for."""
        from ._dstack_task import runpod_task

        return runpod_task(where, self.options.image)

    def estimate(self, where: str, estimates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        from ._dstack_offers import estimate

        return estimate(self.asked(where), self.options)

    def launch(self, run: Run, where: str) -> Mapping[str, Any]:
        from ._dstack import Rented

        return Rented(run, self.name, self.options, self.asked(where)).launch()

    def is_busy(self, run: Run) -> bool:
        return _is_busy(run, self.name)

    def cancel(self, run: MeasuredRun, where: str, running: bool) -> Cancelled:
        from ._dstack import cancel

        return cancel(run, self.name, self.options, running)

    @classmethod
    def diagnose(cls, options: Any = None) -> Iterable[Diagnosis]:
        from ._cloud_doctor import dstack

        yield from super().diagnose(options)
        yield from dstack()


class Dstack(RunPod):
    """A machine of any cloud that dstack reaches, as a task file of the user describes it."""

    name = "dstack"
    summary = "a machine that dstack rents: --on dstack:FILE"

    def asked(self, where: str) -> dict[str, Any]:
        from ._dstack_task import file_task

        if not where:
            raise InputError("--on dstack names no file", "name one with a dstack task: --on dstack:task.dstack.yml")
        found = file_task(where)
        return {**found, "image": self.options.image} if self.options.image else found
