"""Batch jobs: a file of chat requests is answered in the background, and survives a restart.

Unlike single requests, the lines of a file are known beforehand: greedy ones of like settings are
answered in batches that are planned from the whole file, so that speed costs no repeatability.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ftkit.measure import plan
from ftkit.records import Example, Generation
from ftkit.store import Journal, dump_json

from .chat import completion, example_of, generation_of, key_of, read_chat
from .engine import Engine
from .errors import ApiError
from .files import Files
from .store import Doc, Store, new_id, now
from .wire import BatchLine, Chat

ACTIVE = ("cancelling", "finalizing", "in_progress", "validating")
_MOST = 50_000  # lines of a file, as at OpenAI


@dataclass(frozen=True)
class _Request:
    """One line that can be asked."""

    number: int
    custom_id: str
    chat: Chat
    example: Example
    generation: Generation


class _Invalid(Exception):
    """The file cannot be run: `errors` as a batch shows them."""

    def __init__(self, errors: list[Doc]) -> None:
        super().__init__(errors[0]["message"])
        self.errors = errors


class Batches:
    """A thread that answers one batch after the other."""

    def __init__(self, data: Path, store: Store, files: Files, engine: Engine) -> None:
        self.folder, self.store, self.files, self.engine = data / "batches", store, files, engine
        self.folder.mkdir(exist_ok=True)
        self.wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the batch of prompts it is at; the rest is done when the server is started again."""
        self._stop.set()
        self.wake.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._stop.is_set():
            self.wake.clear()
            for batch in self.store.waiting("batch", *ACTIVE):
                try:
                    self._run(batch)
                except _Invalid as error:
                    self._fail(batch["id"], error.errors)
                except Exception as error:  # a defect fails this batch and never ends the thread
                    self._fail(batch["id"], [_error("server_error", f"{type(error).__name__}: {error}")])
                if self._stop.is_set():
                    return
            self.wake.wait(5.0)

    def _run(self, batch: Doc) -> None:
        id, model = batch["id"], None
        journal = Journal(self.folder / f"{id}.jsonl")
        lines = self._read(batch)
        rows: dict[int, Doc] = {}  # line -> what the output or error file says of it
        asked: list[_Request] = []
        for number, line in lines:
            try:
                asked.append(self._request(batch, number, line))
                model = model or asked[-1].chat.model
            except ApiError as error:
                rows[number] = _row(line.custom_id, error.status, error.body)
        self.store.update("batch", id, ("validating",), status="in_progress", in_progress_at=now(), model=model)
        groups = self._plan(asked)
        done = {entry["group"]: entry["rows"] for entry in journal.read()}
        for found in done.values():
            rows |= {int(number): row for number, row in found.items()}
        self._count(id, len(lines), rows)
        for index, group in enumerate(groups):
            if self._stop.is_set():
                return
            current = self.store.get("batch", id)
            if current is None or current["status"] == "cancelling":
                break
            if index in done:
                continue
            answered = self._answer(group)
            journal.append({"group": index, "rows": answered})
            rows |= answered
            self._count(id, len(lines), rows)
        self._finish(id, rows)
        journal.path.unlink(missing_ok=True)

    def _read(self, batch: Doc) -> list[tuple[int, BatchLine]]:
        """Return the lines with their numbers. Raises _Invalid with every line that is no request."""
        found: list[tuple[int, BatchLine]] = []
        errors: list[Doc] = []
        seen: set[str] = set()
        try:
            texts = self.files.path(batch["input_file_id"]).read_text("utf-8-sig").split("\n")
        except FileNotFoundError:
            raise _Invalid([_error("file_not_found", "The input file was deleted.")]) from None
        except UnicodeDecodeError:
            raise _Invalid([_error("invalid_file_format", "The input file is not UTF-8.")]) from None
        for number, text in enumerate(texts, 1):
            if not text.strip():
                continue
            try:
                line = BatchLine.model_validate_json(text)
            except ValidationError as error:
                first = error.errors()[0]
                param = ".".join(map(str, first["loc"])) or None
                errors.append(_error("invalid_json_line", f"{param or 'line'}: {first['msg']}", number, param))
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
            errors.append(_error("empty_file", "The input file holds no request."))
        if len(found) > _MOST:
            errors.append(_error("too_many_requests", f"A batch has at most {_MOST:,} requests."))
        if errors:
            raise _Invalid(errors)
        return found

    def _request(self, batch: Doc, number: int, line: BatchLine) -> _Request:
        try:
            chat = read_chat(line.body)
        except ValueError as error:
            raise ApiError(400, str(error), "invalid_value") from None
        if chat.stream:
            raise ApiError(400, "A batch cannot stream.", "invalid_value", "stream")
        if chat.seed is None:  # the same plan, and the same text, after a restart
            chat = chat.model_copy(update={"seed": zlib.crc32(f"{batch['id']} {number}".encode())})
        generation = generation_of(chat, self.engine.most_tokens(chat.model))
        # Sampled text is asked for by itself, as a single request is, and gets the same answer.
        example = example_of(chat, str(number) if generation.temperature == 0 else "prompt")
        return _Request(number, line.custom_id, chat, example, generation)

    def _plan(self, asked: list[_Request]) -> list[list[_Request]]:
        alike: dict[str, list[_Request]] = {}
        groups: list[list[_Request]] = []
        for request in asked:
            if request.generation.temperature == 0:
                alike.setdefault(key_of(request.chat, request.generation), []).append(request)
            else:
                groups.append([request])
        for requests in alike.values():
            by_id = {request.example.id: request for request in requests}
            size = self.engine.batch_size(requests[0].chat.model)
            groups += [[by_id[id] for id in ids] for ids in plan([r.example for r in requests], size)]
        return groups

    def _answer(self, group: list[_Request]) -> dict[int, Doc]:
        first = group[0]
        rows: dict[int, Doc] = {}
        try:
            predictions = self.engine.ask(first.chat.model, [r.example for r in group], first.generation).result()
        except ApiError as error:
            return {r.number: _row(r.custom_id, error.status, error.body) for r in group}
        for request in group:
            try:
                body = completion(request.chat, [p for p in predictions if p.example_id == request.example.id])
                rows[request.number] = _row(request.custom_id, 200, body)
            except ApiError as error:
                rows[request.number] = _row(request.custom_id, error.status, error.body)
        return rows

    def _count(self, id: str, total: int, rows: dict[int, Doc]) -> None:
        failed = sum(row["response"]["status_code"] != 200 for row in rows.values())
        counts = {"total": total, "completed": len(rows) - failed, "failed": failed}
        used = [row["response"]["body"]["usage"] for row in rows.values() if row["response"]["status_code"] == 200]
        usage = {
            "input_tokens": sum(u["prompt_tokens"] for u in used),
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": sum(u["completion_tokens"] for u in used),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": sum(u["total_tokens"] for u in used),
        }
        self.store.update("batch", id, request_counts=counts, usage=usage)

    def _finish(self, id: str, rows: dict[int, Doc]) -> None:
        """Write the output and error files, in the order of the input, and end the batch."""
        self.store.update("batch", id, ("in_progress",), status="finalizing", finalizing_at=now())
        ordered = [row for _, row in sorted(rows.items())]
        good = [row for row in ordered if row["response"]["status_code"] == 200]
        bad = [row for row in ordered if row["response"]["status_code"] != 200]
        written = {}
        for key, part in (("output", good), ("error", bad)):
            if part:
                written[key] = new_id("file-")
                self.files.write(written[key], _lines(part))
        with self.store.together():
            for key, file in written.items():
                self.files.register(file, f"{id}_{key}.jsonl", "batch_output")
                self.store.update("batch", id, **{f"{key}_file_id": file})
            if not self.store.update("batch", id, ("finalizing",), status="completed", completed_at=now()):
                self.store.update("batch", id, ("cancelling",), status="cancelled", cancelled_at=now())

    def _fail(self, id: str, errors: list[Doc]) -> None:
        self.store.update(
            "batch", id, ACTIVE, status="failed", failed_at=now(), errors={"object": "list", "data": errors}
        )


def _lines(rows: Iterable[Doc]) -> bytes:
    return "".join(dump_json(row) + "\n" for row in rows).encode()


def _row(custom_id: str, status: int, body: Doc) -> Doc:
    response = {"status_code": status, "request_id": new_id("req_"), "body": body}
    return {"id": new_id("batch_req_"), "custom_id": custom_id, "response": response, "error": None}


def _error(code: str, message: str, line: int | None = None, param: str | None = None) -> Doc:
    return {"code": code, "message": message, "param": param, "line": line}
