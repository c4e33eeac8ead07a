"""How long a training will still take: the measured seconds per token, times the tokens that are left."""

from __future__ import annotations

from ._batches import TokenCounter

MEASURED = (
    3  # steps that are measured before anything is said; the first step of an attempt warms up and does not count
)


class Pace:
    """Extrapolates the time of training. Call `ended` after each step.

    A step costs what its tokens cost, padding included: steps differ, and which tokens come is known beforehand.
    Measurements during training are counted apart.
    """

    def __init__(self, counter: TokenCounter, first_step: int) -> None:
        self.counter, self.begun = counter, first_step + 1  # the step whose end starts the clock
        self.started: float | None = None
        self.seconds = 0.0  # since then, without measurements
        self.last = first_step

    def ended(self, step: int, seconds: float) -> None:
        """Take in the end of a step; `seconds` are those of training so far, without measurements."""
        if self.started is None and step >= self.begun:
            self.started, self.begun = seconds, step
        elif self.started is not None:
            self.seconds = seconds - self.started
        self.last = step

    @property
    def measured(self) -> int:
        """The number of steps that were measured."""
        return 0 if self.started is None else self.last - self.begun

    def left(self, max_steps: int) -> float | None:
        """Return the seconds of the steps that are left; None until enough steps were measured."""
        if self.measured < MEASURED:
            return None
        begun, now, end = (self.counter.after(step)[1] for step in (self.begun, self.last, max_steps))
        return self.seconds * (end - now) / max(1, now - begun)
