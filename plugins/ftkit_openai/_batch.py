"""Answers through the Batch API: half the price, up to 24 hours. Each batch is made once, like a job."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ftkit.api import Session
from ftkit.errors import Interrupted, RunFailed
from ftkit.records import Example, Generation, ModelRef, Prediction
from ftkit.store import RunContext, digest

from ._client import Malformed, Provider, jittered
from ._create import create_once
from ._infer import Spill, chat_body, predictions_of
from ._preflight import price_of
from ._rows import write_file
from ._upload import uploaded

_MOST = 50_000  # requests in one batch
_BYTES = 190 << 20  # of one batch's file; the API takes 200 MB
_Asked = tuple[Sequence[Example], list[str]]  # a planned batch, and its request lines
_ENDS = ("completed", "failed", "expired", "cancelled")


class BatchSession(Session):
    """Asks everything in few large batches; an answer comes when its batch is done."""

    def __init__(self, provider: Provider, model: ModelRef, run: RunContext) -> None:
        self.provider, self.model, self.run = provider, model, run
        self.price = price_of(provider.options)

    def generate(self, batches: Iterable[Sequence[Example]], generation: Generation) -> Iterator[list[Prediction]]:
        for portion in self.portions(batches, generation):
            try:
                yield from self.answered(portion, generation)
            except KeyboardInterrupt:
                raise Interrupted(
                    "detached: the batch goes on at the provider, and is paid for",
                    f"come back with: ftkit run --resume {self.run.dir}\n  end it with: ftkit cancel {self.run.dir}",
                ) from None

    def portions(self, batches: Iterable[Sequence[Example]], generation: Generation) -> Iterator[list[_Asked]]:
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

    def line(self, example: Example, generation: Generation) -> str:
        body = chat_body(self.provider, self.model, example, generation)
        request = {"custom_id": custom_id(example), "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(request)

    def answered(self, portion: list[_Asked], generation: Generation) -> Iterator[list[Prediction]]:
        """Yield the answers of one portion: those that an earlier attempt left, and those of one batch.

        A batch is known again by the requests that are open. While it is under way, they are the same after
        a kill; once it is done, its answers are kept before the first is given on.
        """
        spill = Spill(self.run, self.model, generation)
        if not self.known(portion):
            kept = [(asked, spill.take(asked[0])) for asked in portion]
            yield from (answers for _, answers in kept if answers is not None)
            portion = [asked for asked, answers in kept if answers is None]
        if not portion:
            return
        made = self.followed(self.batch(portion))
        if made.status == "failed":
            self.forget(portion)
            said = (made.errors.data if made.errors else None) or []
            why = "; ".join(self.provider.clean(e.message) for e in said[:3]) or "no reason is given"
            raise RunFailed(
                f"the batch {made.id} was refused: {why}", f"mend it, and go on with: ftkit run --resume {self.run.dir}"
            )
        rows = self.rows(made)
        answers = [
            (batch, [p for e in batch for p in self.prediction(e, rows.get(custom_id(e)), generation, made.status)])
            for batch, _ in portion
        ]
        for batch, predictions in answers:
            spill.keep(batch, predictions)
        for _, predictions in answers:
            yield predictions
        self.forget(portion)

    def known(self, portion: list[_Asked]) -> bool:
        return bool(self.run.state.get(_name(portion)))

    def forget(self, portion: list[_Asked]) -> None:
        """What failed of it and is asked again is another batch, also where it is the same requests."""
        attempts = dict(self.run.state.get("batch_attempts") or {})
        mark = _mark(portion)
        self.run.save_state(**{_name(portion): None}, batch_attempts={**attempts, mark: attempts.get(mark, 1) + 1})

    def batch(self, portion: list[_Asked]) -> Any:
        """Return the batch of these requests, made once."""
        provider, run, mark = self.provider, self.run, _mark(portion)
        id = (run.state.get(_name(portion)) or {}).get("id")
        if id:
            return provider.read("looking at the batch", lambda: provider.client.batches.retrieve(id))
        lines = [line for _, of_batch in portion for line in of_batch]
        file = write_file(run.scratch("batches") / f"{mark}.jsonl", lines, "batch", bom=False)
        attempt = (run.state.get("batch_attempts") or {}).get(mark, 1)
        metadata = {"ftkit_run": run.id, "ftkit_batch": mark, "ftkit_attempt": str(attempt)}
        file_id = uploaded(provider, run, file, "batch")
        return create_once(
            provider,
            run,
            _name(portion),
            lambda: provider.client.batches.create(
                input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata
            ),
            lambda: _find(provider, metadata),
            "a batch of requests",
        )

    def followed(self, made: Any) -> Any:
        delay, told = 0.5, None
        while made.status not in _ENDS:
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
        self, example: Example, row: dict[str, Any] | None, generation: Generation, status: str
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


def _find(provider: Provider, metadata: dict[str, str]) -> Any:
    """Return the oldest recent batch with this mark, or None."""
    found = None
    for number, batch in enumerate(provider.client.batches.list(limit=100)):
        if metadata.items() <= (batch.metadata or {}).items():
            found = batch
        if number >= 1000:
            break
    return found
