"""Answers through the Batch API: half the price, up to 24 hours. Each batch is made once, like a job."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import openai

from ftkit.api import Run, Session
from ftkit.errors import Interrupted, RunFailed
from ftkit.files import digest
from ftkit.records import Example, GenerationConfig, ModelRef, Prediction

from ._client import Malformed, Provider, jittered
from ._create import create_again, create_once, in_doubt, taken_again
from ._dialects import is_own_server
from ._infer import Spill, chat_body, predictions_of
from ._preflight import price_of
from ._rows import write_file
from ._upload import uploaded

_MOST = 50_000  # requests in one batch
_BYTES = 190 << 20  # of one batch's file; the API takes 200 MB
_Asked = tuple[Sequence[Example], list[str]]  # a planned batch, and its request lines
_LISTED = 1000  # batches that are looked through for the run's own
_WHAT = "a batch of requests"
BATCH_ENDS = ("completed", "failed", "expired", "cancelled")


class BatchSession(Session):
    """Asks everything in few large batches; an answer comes when its batch is done."""

    def __init__(self, provider: Provider, model: ModelRef, run: Run) -> None:
        self.provider, self.model, self.run = provider, model, run
        self.price = price_of(provider.options)

    def generate(
        self, batches: Iterable[Sequence[Example]], generation: GenerationConfig
    ) -> Iterator[list[Prediction]]:
        for portion in self.portions(batches, generation):
            try:
                yield from self.answered(portion, generation)
            except (KeyboardInterrupt, Exception) as error:
                if isinstance(error, KeyboardInterrupt) or self.run.interrupted:
                    raise self.detached() from None
                raise

    def detached(self) -> Interrupted:
        """Return what to say of Ctrl-C: what goes on and is paid for is told apart from what does not exist."""
        run = self.run
        back, end = f"come back with: ftkit run --resume {run.dir}", f"\n  end it with: ftkit cancel {run.dir}"
        open_ = [name for name, entry in run.state.items() if name.startswith("batch-") and entry]
        if any(in_doubt(run, name) for name in open_):
            return Interrupted(
                "interrupted while it is unknown whether a batch exists", f"{back} (it looks for the batch first){end}"
            )
        if not any((run.state[name] or {}).get("id") for name in open_):
            return Interrupted("interrupted before a batch was created", back)
        if is_own_server(self.provider.options):
            return Interrupted("detached: the batch waits with its server", back)
        return Interrupted("detached: the batch goes on at the provider, and is paid for", back + end)

    def portions(self, batches: Iterable[Sequence[Example]], generation: GenerationConfig) -> Iterator[list[_Asked]]:
        """Yield as many planned batches, with their request lines, as one batch of the API takes."""
        portion: list[_Asked] = []
        count = size = 0
        for batch in batches:
            lines = [self.line(e, generation) for e in batch]
            bytes_ = sum(len(line.encode()) + 1 for line in lines)
            if portion and (count + len(lines) > _MOST or size + bytes_ > _BYTES):
                yield portion
                portion, count, size = [], 0, 0
            portion.append((batch, lines))
            count, size = count + len(lines), size + bytes_
        if portion:
            yield portion

    def line(self, example: Example, generation: GenerationConfig) -> str:
        body = chat_body(self.provider, self.model, example, generation)
        request = {"custom_id": custom_id(example), "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(request)

    def answered(self, portion: list[_Asked], generation: GenerationConfig) -> Iterator[list[Prediction]]:
        """Yield the answers of one portion: those that an earlier attempt left, and those of one batch.

        A batch is known again by the requests that are open. While it is under way, they are the same after
        a kill; once it is done, its answers are kept before the first is given on.
        """
        if not self.known(portion) or self.given_up(portion, generation):
            spill = Spill(self.run, self.model, generation)
            kept = [(asked, spill.take(asked[0])) for asked in portion]
            yield from (answers for _, answers in kept if answers is not None)
            portion = [asked for asked, answers in kept if answers is None]
        if not portion:
            return
        made = self.followed(self.batch(portion))
        if made.status == "cancelled":
            self.keep(made, portion, generation)
            raise RunFailed(
                f"the batch {made.id} was cancelled; what it answered is kept",
                f"another for the rest, paid anew: ftkit run --resume {self.run.dir} --create-again",
            )
        if made.status == "failed":
            self.forget(portion)
            said = (made.errors.data if made.errors else None) or []
            why = "; ".join(self.provider.clean(e.message) for e in said[:3]) or "no reason is given"
            raise RunFailed(
                f"the batch {made.id} was refused: {why}", f"mend it, and go on with: ftkit run --resume {self.run.dir}"
            )
        yield from self.keep(made, portion, generation)
        self.forget(portion)

    def keep(self, made: Any, portion: list[_Asked], generation: GenerationConfig) -> list[list[Prediction]]:
        """Return a batch's answers, after writing them down; of a cancelled one, those that are whole."""
        rows = self.rows(made)
        spill = Spill(self.run, self.model, generation)
        answers = []
        for batch, _ in portion:
            found = [p for e in batch for p in self.prediction(e, rows.get(custom_id(e)), generation, made.status)]
            whole = made.status != "cancelled" or not any(p.error for p in found)
            if whole and spill.take(batch) is None:
                spill.keep(batch, found)
            answers.append(found)
        return answers

    def known(self, portion: list[_Asked]) -> bool:
        return bool(self.run.state.get(_name(portion)))

    def given_up(self, portion: list[_Asked], generation: GenerationConfig) -> bool:
        """Forget a batch that was cancelled, or is not there any more, where the user wants another."""
        id = (self.run.state.get(_name(portion)) or {}).get("id")
        if id is None or not create_again(self.run):
            return False
        made = self.provider.read("looking at the batch", lambda: self.retrieved(id))
        if made is not None and made.status == "cancelling":
            made = self.followed(made)
        if made is not None and made.status != "cancelled":
            said = f"batch {id} is {made.status}: --create-again makes no second one"
            self.run.log("warning", message=said)
            self.run.save_state(create_again=False)
            return False
        if made is not None:
            self.keep(made, portion, generation)
        self.forget(portion)
        return True

    def forget(self, portion: list[_Asked]) -> None:
        """What failed of it and is asked again is another batch, also where it is the same requests."""
        self.run.save_state(**{_name(portion): None})
        self.next_attempt(_name(portion))

    def next_attempt(self, name: str) -> None:
        attempts = dict(self.run.state.get("batch_attempts") or {})
        mark = name.removeprefix("batch-")
        self.run.save_state(batch_attempts={**attempts, mark: attempts.get(mark, 1) + 1})

    def retrieved(self, id: str) -> Any:
        try:
            return self.provider.client.batches.retrieve(id)
        except openai.NotFoundError:
            return None

    def batch(self, portion: list[_Asked]) -> Any:
        """Return the batch of these requests, made once."""
        provider, run, name, mark = self.provider, self.run, _name(portion), _mark(portion)
        id = (run.state.get(name) or {}).get("id")
        if id:
            made = provider.read("looking at the batch", lambda: self.retrieved(id))
            if made is None:
                raise RunFailed(
                    f"{provider.dialect.where} knows no batch {id} (404)",
                    f"do backend.base_url and the key belong to it? look again: ftkit run --resume {run.dir}\n"
                    f"  another batch, paid anew: ftkit run --resume {run.dir} --create-again",
                )
            return made

        def find() -> Any:
            return _to_take(provider, run, name)

        made = taken_again(provider, run, name, find, _WHAT)
        if made is not None:
            return made
        if in_doubt(run, name) and create_again(run):
            self.next_attempt(name)
        lines = [line for _, of_batch in portion for line in of_batch]
        file = write_file(run.scratch("batches") / f"{mark}.jsonl", lines, "batch", bom=False)
        metadata = {"ftkit_run": run.id, "ftkit_batch": mark, "ftkit_attempt": _attempt(run, name)}
        file_id = uploaded(provider, run, file, "batch")
        return create_once(
            provider,
            run,
            name,
            lambda: provider.client.batches.create(
                input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata
            ),
            find,
            _WHAT,
        )

    def followed(self, made: Any) -> Any:
        delay, told = 0.5, None
        while made.status not in BATCH_ENDS:
            counts = made.request_counts
            now = (made.status, counts.completed if counts else 0)
            if now != told:
                told, delay = now, 0.5
                total = f", {counts.completed} of {counts.total} done" if counts and counts.total else ""
                self.run.log("note", message=f"batch {made.id}: {made.status}{total}")
            time.sleep(jittered(delay))
            delay = min(delay * 1.5, self.provider.options.poll_seconds)
            made = self.provider.read(
                f"looking at batch {made.id} (it goes on at the provider)",
                lambda id=made.id: self.provider.client.batches.retrieve(id),  # type: ignore[misc]
            )
        return made

    def rows(self, made: Any) -> dict[str, dict[str, Any]]:
        """Return what the batch's files hold, by custom id; lines that are no JSON are left out."""
        found: dict[str, dict[str, Any]] = {}
        for id in (made.error_file_id, made.output_file_id):
            if not id:
                continue
            data = self.provider.read(
                "reading the batch's answers", lambda id=id: self.provider.client.files.content(id).read()
            )  # type: ignore[misc]
            for line in data.decode("utf-8", "replace").split("\n"):
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    found[str(row.get("custom_id"))] = row
        return found

    def prediction(
        self, example: Example, row: dict[str, Any] | None, generation: GenerationConfig, status: str
    ) -> list[Prediction]:
        response = (row or {}).get("response") or {}
        body = response.get("body") if isinstance(response, dict) else None
        if isinstance(body, dict) and response.get("status_code") == 200:
            try:
                return predictions_of(example, body, generation, self.price, self.model.base is not None, batch=True)
            except Malformed as error:
                why = self.provider.clean(error)
        else:
            error_of = (row or {}).get("error") or ((body or {}).get("error") if isinstance(body, dict) else None) or {}
            said = self.provider.clean(error_of.get("message") or "") if isinstance(error_of, dict) else ""
            why = said or f"the batch is {status} and holds no answer to it"
        failed = Prediction(example.id, "", 0, "error", error=why)
        return [replace(failed, sample=sample) for sample in range(generation.samples)]

    def stats(self) -> dict[str, Any]:
        return {"device": f"{self.provider.lives}, Batch API"}


def _mark(portion: list[_Asked]) -> str:
    return digest([line for _, lines in portion for line in lines])[:32]


def _name(portion: list[_Asked]) -> str:
    return f"batch-{_mark(portion)}"


def custom_id(example: Example) -> str:
    """Return an id for a request: an example's own may be longer than the API takes."""
    return example.id if len(example.id) <= 64 and example.id.isascii() else digest(example.id)


def find_batches(provider: Provider, run: Run) -> list[Any]:
    """Return the recent batches of a run, the oldest first. May raise what the client raises."""
    listed = itertools.islice(provider.client.batches.list(limit=100), _LISTED)
    return [batch for batch in listed if (batch.metadata or {}).get("ftkit_run") == run.id][::-1]


def is_at(run: Run, name: str, batch: Any) -> bool:
    """Say whether a batch is what the run asked for last at this place of its state."""
    mark = {"ftkit_batch": name.removeprefix("batch-"), "ftkit_attempt": _attempt(run, name)}
    return bool(mark.items() <= (batch.metadata or {}).items())


def _attempt(run: Run, name: str) -> str:
    return str((run.state.get("batch_attempts") or {}).get(name.removeprefix("batch-"), 1))


def _to_take(provider: Provider, run: Run, name: str) -> Any:
    """Return the batch that the run goes on with, or None: this attempt's, or an earlier one still under way."""
    found = [b for b in find_batches(provider, run) if b.metadata.get("ftkit_batch") == name.removeprefix("batch-")]
    ours = [batch for batch in found if is_at(run, name, batch)]
    under_way = [batch for batch in found if batch.status not in (*BATCH_ENDS, "cancelling")]
    if run.state.get("create_again"):
        ours = [batch for batch in ours if batch.status not in ("cancelled", "cancelling")]
    return next(iter([*ours, *under_way]), None)
