"""`ftkit chat`: ask a run's models from a terminal, or from lines that are piped in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..console import Console
from ..data.asking import typed_fields, typed_question
from ..directory import RunDirectory
from ..errors import Interrupted, RunFailed
from ..records import Example, Message, Prediction
from ..terminal import paint
from ..text import nearest, visible
from .models import BASE, TUNED, RunModels

COMMANDS = {
    "/base": "ask the base model alone",
    "/tuned": "ask the tuned model alone",
    "/compare": "ask both, and show the answers one below the other",
    "/reset": "forget the conversation so far",
    "/help": "show these commands",
    "/quit": "leave (as does Ctrl-D)",
}
_BLOCK = '"""'  # begins and ends a text of several lines


def chat(
    run: RunDirectory,
    console: Console,
    base: bool = False,
    compare: bool = False,
    overrides: Sequence[str] = (),
    yes: bool = False,
) -> None:
    """Talk until the input ends. Answers go to stdout, everything else to stderr.

    `base` begins with the untouched model, `compare` with both. Raises InputError where a model is not there or the
    price was not confirmed, RunFailed where requests fail and no person is at a terminal.
    """
    with RunModels(run, console, overrides) as models:
        names = (BASE, TUNED) if compare else (BASE,) if base else (TUNED,)
        talk = _Talk(models, console, names, yes)
        try:
            talk.go()
        except KeyboardInterrupt:  # while a model was loaded
            raise Interrupted("interrupted") from None


@dataclass
class _Talk:
    models: RunModels
    console: Console
    names: tuple[str, ...]
    yes: bool
    history: dict[str, list[Message]] = field(default_factory=dict)  # the turns so far, by model
    confirmed: set[str] = field(default_factory=set)

    def go(self) -> None:
        self.person = sys.stdin.isatty() and sys.stdout.isatty()
        self.fields = typed_fields(self.models.recipe)
        self.out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="replace")
        with self.out:
            self.choose(self.names)
            for line in self.opening():
                self.console.say(line)
            for values in self.typed():
                if not self.ask(values):
                    return

    def opening(self) -> Iterator[str]:
        """Yield what a person should know before typing."""
        record = self.models.run.record()
        generation = self.models.generation
        how = "greedy" if generation.temperature == 0 else f"temperature {generation.temperature:g}"
        yield (
            f"{record.name} ({self.models.run.id}): {' and '.join(map(self.models.shown, self.names))} model, "
            f"{how}, at most {generation.max_new_tokens} tokens"
        )
        if not self.fields:
            yield "Each text is one turn of a conversation."
        else:
            what = "the input of the recipe's prompt" if len(self.fields) == 1 else "one question"
            yield (
                f"What you type ({', '.join(self.fields)}) is {what}: the model sees it as it saw the rows in training. "
                "Earlier texts are not part of it."
            )
        if self.person:
            yield f"{_BLOCK} begins and ends a text of several lines. /help shows the commands."

    # ---- what is typed

    def typed(self) -> Iterator[dict[str, str]]:
        """Yield what is asked, column by column, until the input ends; commands are followed on the way."""
        while True:
            values: dict[str, str] = {}
            for name in self.fields or ("",):
                text = self.read(name)
                while text is not None and text.startswith("/") and self.is_command(text):
                    if text.split()[0] == "/quit":
                        return
                    self.follow(text)
                    text = self.read(name)
                if text is None:
                    return
                values[name] = text
            if any(value.strip() for value in values.values()):
                yield values

    def read(self, name: str) -> str | None:
        """Return one text, perhaps of several lines; None where the input has ended."""
        line = self.line(f"{name or 'you'}> ")
        if line is None or not line.lstrip().startswith(_BLOCK):
            return line
        lines = [line.lstrip().removeprefix(_BLOCK)]
        while not lines[-1].rstrip().endswith(_BLOCK) or (len(lines) == 1 and not lines[0].strip()):
            more = self.line("... ")
            if more is None:
                break
            lines.append(more)
        lines[-1] = lines[-1].rstrip().removesuffix(_BLOCK)
        return "\n".join(lines).strip("\n")

    def line(self, prompt: str) -> str | None:
        """Return one line without its end; None where the input has ended."""
        if not self.person:
            text = sys.stdin.readline()
            return text.rstrip("\r\n") if text else None
        import readline  # noqa: F401  it gives `input` its editing and history

        while True:
            try:
                return input(prompt)
            except EOFError:
                print(file=self.out, flush=True)
                return None
            except KeyboardInterrupt:  # what was typed is dropped
                print("\n(Ctrl-D or /quit leaves)", file=self.out, flush=True)

    def is_command(self, text: str) -> bool:
        """Return whether text is a command; of a word that is none, it is said, where a person is there to read it."""
        word = text.split()[0]
        if word in COMMANDS:
            return True
        near = nearest(word, COMMANDS)
        if near and "/" not in word[1:]:
            self.console.say(f"{word} is no command: it is asked as text; did you mean {near}?")
        return False

    def follow(self, text: str) -> None:
        word = text.split()[0]
        if word == "/help":
            for name, what in COMMANDS.items():
                self.console.say(f"  {name:<9} {what}")
        elif word == "/reset":
            self.history.clear()
            self.console.say("forgotten" if not self.fields else "each text is asked alone: there is nothing to forget")
        else:
            wanted = {"/base": (BASE,), "/tuned": (TUNED,), "/compare": (BASE, TUNED)}[word]
            try:
                self.choose(wanted)
            except Exception as error:
                if not self.person:
                    raise
                self.console.say(f"error: {error}")
                return
            self.console.say(f"now: {' and '.join(map(self.models.shown, wanted))} model")

    def choose(self, names: tuple[str, ...]) -> None:
        """Load the models that are asked from here on; first confirm that they may cost something."""
        new = [name for name in names if name not in self.confirmed]
        for name in new:
            self.models.ref(name)
            self.models.warn_of_changes(name)
        if new:
            self.models.confirm_talk(new, self.yes)
        for name in names:
            self.models.session(name)
        self.confirmed.update(new)
        self.names = names

    # ---- answers

    def ask(self, values: dict[str, str]) -> bool:
        """Show the answer of each chosen model; return whether to continue."""
        for name in self.names:
            turns = self.history.setdefault(name, [])
            example = typed_question(self.models.recipe, values, turns)
            if len(self.names) > 1:
                print(paint(f"[{self.models.shown(name)}]", "bold", stream=self.out), file=self.out, flush=True)
            text, ended = self.answer(name, example)
            if not self.fields:
                turns += [example.messages[-1], Message("assistant", text)]
            if not ended:
                break
        return True

    def answer(self, name: str, example: Example) -> tuple[str, bool]:
        """Show one answer as it comes; return its text, and False where Ctrl-C ended it."""
        shown: list[str] = []
        generation = self.models.generation.replace(samples=1)
        pieces = self.models.session(name).stream(example, generation)
        prediction: Prediction | None = None
        try:
            with self.models.console.quiet(self.models.log):
                while True:
                    try:
                        piece = next(pieces)
                    except StopIteration as end:
                        prediction = end.value
                        break
                    shown.append(piece)
                    print(visible(piece), end="", file=self.out, flush=True)
        except KeyboardInterrupt:
            if not self.person:
                raise
            pieces.close()
            print("\n(ended)", file=self.out, flush=True)
            return "".join(shown), False
        if prediction is not None and prediction.error is not None:
            if not self.person:
                raise RunFailed(f"the model gave no answer: {prediction.error}")
            self.console.say(f"no answer: {prediction.error}")
            return "", False
        cut = prediction is not None and prediction.finish_reason == "length"
        print(file=self.out, flush=True)
        if cut and self.person:
            self.console.say(f"(ended at the limit, generation.max_new_tokens {generation.max_new_tokens})")
        return "".join(shown), True
