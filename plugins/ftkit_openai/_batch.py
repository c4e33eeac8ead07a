"""Answers through the Batch API: half the price, up to 24 hours. Each batch is created once, like a job."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import openai

from ftkit.api import Run, Session
from ftkit.errors import RunFailed
from ftkit.files import digest
from ftkit.records import Example, GenerationConfig, ModelRef, Prediction

from ._client import Provider
from ._errors import Malformed
from ._estimate import price_of
from ._lists import mapping_of
from ._once import Once, detached
from ._requests import LateAnswers, chat_body, failed_predictions, predictions_of
from ._results import tokens_of
from ._rows import write_file
from ._state import AGAIN, state_of
from ._tags import BATCH_FINAL, BATCH_PREFIX, batch_tag, batch_to_adopt
from ._throttle import jittered
from ._upload import upload_file

_MOST_REQUESTS = 50_000  # in one batch
_MOST_BYTES = 190 << 20  # of one batch's file; the API takes 200 MB
_Planned = tuple[Sequence[Example], list[str]]  # a planned batch of examples, and its request lines


class BatchSession(Session):
    """Sends all requests in few large batches. The answers come when their batch has ended."""

    def __init__(self, provider: Provider, model: ModelRef, run: Run) -> None:
        self.provider, self.model, self.run = provider, model, run
        self.price = price_of(provider.options)

    def generate(
        self, batches: Iterable[Sequence[Example]], generation: GenerationConfig
    ) -> Iterator[list[Prediction]]:
        """Yield each batch's answers. Raises Interrupted where the user detaches: the batch keeps running."""
        for portion in self.portions(batches, generation):
            try:
                yield from self.answer_portion(portion, generation)
            except (KeyboardInterrupt, Exception) as error:
                if isinstance(error, KeyboardInterrupt) or self.run.interrupted:
                    keys = [key for key in state_of(self.run) if key.startswith(BATCH_PREFIX)]
                    raise detached(self.provider.options, self.run, Batch.noun, keys) from None
                raise

    def portions(self, batches: Iterable[Sequence[Example]], generation: GenerationConfig) -> Iterator[list[_Planned]]:
        """Yield as many planned batches, with their request lines, as one batch of the API can hold."""
        portion: list[_Planned] = []
        count = size = 0
        for batch in batches:
            lines = [self.request_line(e, generation) for e in batch]
            bytes_ = sum(len(line.encode()) + 1 for line in lines)
            if portion and (count + len(lines) > _MOST_REQUESTS or size + bytes_ > _MOST_BYTES):
                yield portion
                portion, count, size = [], 0, 0
            portion.append((batch, lines))
            count, size = count + len(lines), size + bytes_
        if portion:
            yield portion

    def request_line(self, example: Example, generation: GenerationConfig) -> str:
        body = chat_body(self.provider, self.model, example, generation)
        request = {"custom_id": custom_id(example), "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(request)

    def answer_portion(self, portion: list[_Planned], generation: GenerationConfig) -> Iterator[list[Prediction]]:
        """Yield the answers of one portion: those that an earlier attempt saved, and those of one batch.

        The requests that have no answer identify a batch. While it runs they are the same after a kill: the portion stays
        as it is. When it has ended, its answers are saved before the first is yielded.
        """
        while portion:
            batch = Batch(self, portion, generation)
            found = batch.known()
            if batch.entry:
                break
            late = LateAnswers(self.run, self.model, generation)
            saved = [(planned, late.take(planned[0])) for planned in portion]
            yield from (answers for _, answers in saved if answers is not None)
            rest = [planned for planned, answers in saved if answers is None]
            if len(rest) == len(portion):
                break
            portion = rest
        if not portion:
            return
        ended = self.follow(found if found is not None else batch.adopt_or_create())
        if ended.status == "cancelled":
            self.save_answers(self.read_rows(ended)[0], ended, portion, generation)
            raise RunFailed(
                f"the batch {ended.id} was cancelled; what it answered is kept",
                f"another for the rest, paid again: ftkit run --resume {self.run.dir} {AGAIN}",
            )
        if ended.status == "failed":
            batch.forget()
            errors = getattr(ended.errors, "data", None) or []
            why = "; ".join(self.provider.clean(getattr(e, "message", e)) for e in errors[:3]) or "no reason is given"
            raise RunFailed(
                f"the batch {ended.id} was refused: {why}",
                f"fix it, and resume with: ftkit run --resume {self.run.dir}",
            )
        rows, gone = self.read_rows(ended)
        if gone:
            self.save_answers(rows, ended, portion, generation)
            late = LateAnswers(self.run, self.model, generation)
            kept = [late.take(planned) for planned, _ in portion]
            if None not in kept:  # all were saved before the file disappeared
                yield from (answers for answers in kept if answers is not None)
                batch.forget()
                return
            raise RunFailed(
                f"the answers of the batch {ended.id} are gone: {self.provider.dialect.label} has no file {gone} (404)",
                f"do backend.base_url and the key belong to it? look again: ftkit run --resume {self.run.dir}\n"
                f"  {batch.another_hint()}",
            )
        yield from self.save_answers(rows, ended, portion, generation)
        batch.forget()  # what failed of it and is sent again is another batch, even with the same requests

    def follow(self, batch: Any) -> Any:
        """Return the batch when it has ended. Log each change of its status and progress."""
        delay, reported = 0.5, None
        while batch.status not in BATCH_FINAL:
            counts = batch.request_counts
            done, total = (tokens_of(getattr(counts, name, None)) or 0 for name in ("completed", "total"))
            progress = (batch.status, done)
            if progress != reported:
                reported, delay = progress, 0.5
                shown = f", {done} of {total} done" if total else ""
                self.run.log("note", message=f"batch {batch.id}: {batch.status}{shown}")
            time.sleep(jittered(delay))
            delay = min(delay * 1.5, self.provider.options.poll_seconds)
            batch = self.provider.read(
                f"looking at batch {batch.id} (it keeps running at the provider)",
                partial(self.provider.client.batches.retrieve, batch.id),
            )
        return batch

    def save_answers(
        self, rows: dict[str, dict[str, Any]], batch: Any, portion: list[_Planned], generation: GenerationConfig
    ) -> list[list[Prediction]]:
        """Return an ended batch's answers, after saving them; of a cancelled one, only complete planned batches are saved.

        `rows` are those of `read_rows`.
        """
        late = LateAnswers(self.run, self.model, generation)
        answers = []
        for planned, _ in portion:
            found = [p for e in planned for p in self.predictions(e, rows.get(custom_id(e)), generation, batch.status)]
            complete = batch.status != "cancelled" or not any(p.error for p in found)
            if complete and late.take(planned) is None:
                late.keep(planned, found)
            answers.append(found)
        return answers

    def read_rows(self, batch: Any) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Return what the batch's files hold, by custom id, and the id of its output file where that is gone (404).

        Lines that are not JSON are left out: they are no answer.
        """
        found: dict[str, dict[str, Any]] = {}
        gone = None
        files = self.provider.client.files
        for id in (batch.error_file_id, batch.output_file_id):
            if not id:
                continue
            data = self.provider.read("reading the batch's answers", partial(_download_or_none, files, id))
            if data is None:
                gone = id if id == batch.output_file_id else gone
                continue
            for line in data.decode("utf-8", "replace").split("\n"):
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict):
                    found[str(row.get("custom_id"))] = row
        return found, gone

    def predictions(
        self, example: Example, row: dict[str, Any] | None, generation: GenerationConfig, status: str
    ) -> list[Prediction]:
        """Return the predictions of one example: from its row, or failed ones where the batch has no answer to it."""
        response = mapping_of((row or {}).get("response"))
        body = response.get("body")
        if isinstance(body, dict) and response.get("status_code") == 200:
            try:
                return predictions_of(example, body, generation, self.price, self.model.base is not None, batch=True)
            except Malformed as error:
                why = self.provider.clean(error)
        else:
            error_of = (row or {}).get("error") or ((body or {}).get("error") if isinstance(body, dict) else None) or {}
            message = self.provider.clean(error_of.get("message") or "") if isinstance(error_of, dict) else ""
            why = message or f"the batch is {status} and contains no answer to it"
        return failed_predictions(example, generation, why)

    def stats(self) -> dict[str, Any]:
        return {"device": f"{self.provider.hosted_by}, Batch API"}


class Batch(Once):
    """The batch of one portion's requests; their hash is its key."""

    noun = "batch"
    what = "a batch of requests"

    def __init__(self, session: BatchSession, portion: list[_Planned], generation: GenerationConfig) -> None:
        self.session, self.portion, self.generation = session, portion, generation
        self.lines = [line for _, lines in portion for line in lines]
        super().__init__(session.provider, session.run, f"{BATCH_PREFIX}{digest(self.lines)[:32]}")

    def find(self) -> Any:
        return batch_to_adopt(self.provider, self.run, self.key)

    def retrieve(self, id: str) -> Any:
        return self.provider.client.batches.retrieve(id)

    def status(self, found: Any) -> str:
        return str(found.status)

    def settle(self, found: Any) -> Any:
        return self.session.follow(found) if found.status == "cancelling" else found

    def can_replace(self, found: Any) -> bool:
        return found.status == "cancelled" or (
            found.status in BATCH_FINAL and self.session.read_rows(found)[1] is not None
        )

    def before_replacing(self, found: Any) -> None:
        self.session.save_answers(self.session.read_rows(found)[0], found, self.portion, self.generation)

    def prepare(self) -> Callable[[], Any]:
        tag = batch_tag(self.run, self.key)
        file = write_file(self.run.scratch("batches") / f"{tag['ftkit_batch']}.jsonl", self.lines, "batch", bom=False)
        file_id = upload_file(self.provider, self.run, file, "batch")
        return partial(
            self.provider.client.batches.create,
            input_file_id=file_id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata=tag,
        )


def custom_id(example: Example) -> str:
    """Return an id for a request: an example's own id may be longer than the API allows."""
    return example.id if len(example.id) <= 64 and example.id.isascii() else digest(example.id)


def _download_or_none(files: Any, id: str) -> bytes | None:
    """Return a file's content; None where the provider does not have it."""
    try:
        content: bytes = files.content(id).read()
    except openai.NotFoundError:
        return None
    return content
