"""Batch jobs: a file of chat requests is answered in the background. Batch jobs survive a restart.

All lines of a file are known before the first is answered. Greedy lines with the same settings are answered in groups
that are planned from the whole file: this is faster than one by one, and the texts stay the same after a restart.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ftkit.batches import plan
from ftkit.errors import FtkitError
from ftkit.files import Journal, dump_json
from ftkit.records import Example, GenerationConfig

from .chat import completion, example_of, generation_of, key_of, read_chat
from .engine import Engine
from .errors import ApiError
from .files import Files
from .shortage import RETRY, explained, log, shortage_of
from .store import Database, Doc, new_id, now
from .wire import BatchLine, Chat

ACTIVE = ("cancelling", "finalizing", "in_progress", "validating")
_MAX_LINES = 50_000  # of a file, as at OpenAI


@dataclass(frozen=True)
class _Request:
    """One valid line of the input file. `number` counts lines from 1."""

    number: int
    custom_id: str
    chat: Chat
    example: Example
    generation: GenerationConfig


class _InvalidBatch(Exception):
    """An input file that is wrong. `errors`: the errors that the batch job shows."""

    def __init__(self, errors: list[Doc]) -> None:
        super().__init__(errors[0]["message"])
        self.errors = errors


class _Counts:
    """Request counts and token usage of a batch job. Each row is added once: the cost does not grow with the job."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.completed = self.failed = 0
        self.prompt_tokens = self.completion_tokens = self.total_tokens = 0

    def add(self, rows: Iterable[Doc]) -> None:
        for row in rows:
            if row["response"]["status_code"] != 200:
                self.failed += 1
                continue
            self.completed += 1
            usage = row["response"]["body"]["usage"]
            self.prompt_tokens += usage["prompt_tokens"]
            self.completion_tokens += usage["completion_tokens"]
            self.total_tokens += usage["total_tokens"]

    def fields(self) -> Doc:
        """Return the fields of the batch object that show the counts."""
        return {
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": {
                "input_tokens": self.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": self.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.total_tokens,
            },
        }


class Batches:
    """A thread that runs one batch job after the other. Set `wake` after a change in the database."""

    def __init__(self, data: Path, database: Database, files: Files, engine: Engine) -> None:
        self.folder, self.database, self.files, self.engine = data / "batches", database, files, engine
        self.folder.mkdir(exist_ok=True)
        self.wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the current group. The batch job resumes when the server is started again."""
        self._stop.set()
        self.wake.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.is_set():
            self.wake.clear()
            pause = 5.0
            try:
                for batch in self.database.with_status("batch", *ACTIVE):
                    self._attempt(batch)
                    if self._stop.is_set():
                        return
            except Exception as error:  # a shortage, or an error that could not be stored: the thread continues
                log.warning("batch jobs wait: %s", explained(error))
                pause = RETRY
            self.wake.wait(pause)

    def _attempt(self, batch: Doc) -> None:
        """Run a batch job. An error fails this batch job. Raises what a shortage caused: the batch job continues later."""
        try:
            self._run(batch)
        except _InvalidBatch as error:
            self._fail(batch["id"], error.errors)
        except Exception as error:
            if shortage_of(error):
                raise
            text = error.message if isinstance(error, FtkitError) else f"{type(error).__name__}: {error}"
            if not isinstance(error, FtkitError):
                log.warning("batch job %s failed", batch["id"], exc_info=error)
            self._fail(batch["id"], [_error("server_error", text)])

    def _run(self, batch: Doc) -> None:
        """Answer all lines, or those that an interrupted attempt left, and write the output files."""
        id, model = batch["id"], None
        journal = Journal(self.folder / f"{id}.jsonl")
        lines = self._read(batch)
        rows: dict[int, Doc] = {}  # line number -> its row of the output or error file
        requests: list[_Request] = []
        for number, line in lines:
            try:
                requests.append(self._request(batch, number, line))
                model = model or requests[-1].chat.model
            except ApiError as error:
                rows[number] = _row(line.custom_id, error.status, error.body)
        self.database.update("batch", id, ("validating",), status="in_progress", in_progress_at=now(), model=model)
        groups = self._plan(requests)
        for entry in journal.read():
            rows |= {int(number): row for number, row in entry["rows"].items()}
        counts = _Counts(len(lines))
        counts.add(rows.values())
        self.database.update("batch", id, **counts.fields())
        for group in groups:
            if self._stop.is_set():
                return
            current = self.database.get("batch", id)
            if current is None or current["status"] == "cancelling":
                break
            if all(request.number in rows for request in group):  # by an interrupted attempt
                continue
            answered = self._answer(group)
            journal.append({"rows": answered})
            rows |= answered
            counts.add(answered.values())
            self.database.update("batch", id, **counts.fields())
        self._finish(batch, rows)
        journal.path.unlink(missing_ok=True)

    def _read(self, batch: Doc) -> list[tuple[int, BatchLine]]:
        """Return the lines with their numbers. Raises _InvalidBatch with an error for each line that is wrong."""
        found: list[tuple[int, BatchLine]] = []
        errors: list[Doc] = []
        seen: set[str] = set()
        try:
            texts = self.files.path(batch["input_file_id"]).read_text("utf-8-sig").split("\n")
        except FileNotFoundError:
            raise _InvalidBatch([_error("file_not_found", "The input file was deleted.")]) from None
        except UnicodeDecodeError:
            raise _InvalidBatch([_error("invalid_file_format", "The input file is not UTF-8.")]) from None
        for number, text in enumerate(texts, 1):
            if not text.strip():
                continue
            try:
                line = BatchLine.model_validate_json(text)
            except ValidationError as error:
                first = error.errors()[0]
                param = ".".join(map(str, first["loc"])) or None
                said = "is an unknown field" if first["type"] == "extra_forbidden" else first["msg"]
                errors.append(_error("invalid_json_line", f"{param or 'line'}: {said}", number, param))
                continue
            if line.custom_id in seen:
                errors.append(
                    _error("duplicate_custom_id", f"custom_id {line.custom_id!r} appears twice.", number, "custom_id")
                )
            if line.url != batch["endpoint"]:
                errors.append(_error("invalid_url", f"The url must be {batch['endpoint']}.", number, "url"))
            seen.add(line.custom_id)
            found.append((number, line))
        if not found and not errors:
            errors.append(_error("empty_file", "The input file has no requests."))
        if len(found) > _MAX_LINES:
            errors.append(_error("too_many_requests", f"A batch has at most {_MAX_LINES:,} requests."))
        if errors:
            raise _InvalidBatch(errors)
        return found

    def _request(self, batch: Doc, number: int, line: BatchLine) -> _Request:
        """Return the request of a line. Raises an ApiError, as a single request does."""
        try:
            chat = read_chat(line.body)
        except ValueError as error:
            raise ApiError(400, str(error), "invalid_value") from None
        if chat.stream:
            raise ApiError(400, "A batch cannot stream.", "invalid_value", "stream")
        if chat.seed is None:  # so that the text is the same after a restart
            chat = chat.model_copy(update={"seed": zlib.crc32(f"{batch['id']} {number}".encode())})
        generation = generation_of(chat, self.engine.max_tokens(chat.model))
        # A sampled line is a group of its own with the id of a single request: it gets the same answer as one.
        example = example_of(chat, str(number) if generation.temperature == 0 else "prompt")
        return _Request(number, line.custom_id, chat, example, generation)

    def _plan(self, requests: list[_Request]) -> list[list[_Request]]:
        """Return groups of requests, each for one batch of the model."""
        greedy: dict[str, list[_Request]] = {}  # key of model and settings -> requests
        groups: list[list[_Request]] = []
        for request in requests:
            if request.generation.temperature == 0:
                greedy.setdefault(key_of(request.chat, request.generation), []).append(request)
            else:
                groups.append([request])
        for similar in greedy.values():
            by_id = {request.example.id: request for request in similar}
            size = self.engine.batch_size(similar[0].chat.model)
            groups += [[by_id[id] for id in ids] for ids in plan([r.example for r in similar], size)]
        return groups

    def _answer(self, group: list[_Request]) -> dict[int, Doc]:
        """Return the rows of one group by line number."""
        first = group[0]
        rows: dict[int, Doc] = {}
        try:
            predictions = self.engine.submit(first.chat.model, [r.example for r in group], first.generation).result()
        except ApiError as error:
            return {r.number: _row(r.custom_id, error.status, error.body) for r in group}
        for request in group:
            try:
                body = completion(request.chat, [p for p in predictions if p.example_id == request.example.id])
                rows[request.number] = _row(request.custom_id, 200, body)
            except ApiError as error:
                rows[request.number] = _row(request.custom_id, error.status, error.body)
        return rows

    def _finish(self, batch: Doc, rows: dict[int, Doc]) -> None:
        """Write the output and error files, in the order of the input, and end the batch job."""
        id = batch["id"]
        self.database.update("batch", id, ("in_progress",), status="finalizing", finalizing_at=now())
        parts: dict[str, list[Doc]] = {"output": [], "error": []}
        for _, row in sorted(rows.items()):
            parts["output" if row["response"]["status_code"] == 200 else "error"].append(row)
        written = {key: new_id("file-") for key, part in parts.items() if part}
        with self.files.removed_on_error(written.values()):
            for key, file in written.items():
                self.files.write(file, _lines(parts[key]))
            with self.database.transaction():
                for key, file in written.items():
                    self.files.register(file, f"{id}_{key}.jsonl", "batch_output", batch.get("_expires_after"))
                    self.database.update("batch", id, **{f"{key}_file_id": file})
                if not self.database.update("batch", id, ("finalizing",), status="completed", completed_at=now()):
                    self.database.update("batch", id, ("cancelling",), status="cancelled", cancelled_at=now())

    def _fail(self, id: str, errors: list[Doc]) -> None:
        self.database.update(
            "batch", id, ACTIVE, status="failed", failed_at=now(), errors={"object": "list", "data": errors}
        )


def _lines(rows: Iterable[Doc]) -> bytes:
    return "".join(dump_json(row) + "\n" for row in rows).encode()


def _row(custom_id: str, status: int, body: Doc) -> Doc:
    response = {"status_code": status, "request_id": new_id("req_"), "body": body}
    return {"id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": None}


def _error(code: str, message: str, line: int | None = None, param: str | None = None) -> Doc:
    return {"code": code, "message": message, "param": param, "line": line}
