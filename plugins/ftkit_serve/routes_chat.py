"""/v1/chat/completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from .chat import Chunks, comes_in_pieces, completion, error_event, example_of, generation_of
from .errors import stopping
from .state import server_of
from .wire import Chat

router = APIRouter()
_CLIENT_GONE = 499  # for the log only


@router.post("/chat/completions", response_model=None)
async def create_completion(request: Request, body: Chat) -> Any:
    engine = server_of(request).engine
    generation = generation_of(body, engine.max_tokens(body.model))
    pieces = _Pieces() if comes_in_pieces(body) else None
    # All prompts have the same id: sampled text depends on the seed, not on other requests.
    chat = engine.submit_chat(body.model, example_of(body, "prompt"), generation, pieces and pieces.put)
    answered, gone = asyncio.wrap_future(chat), asyncio.ensure_future(_client_gone(request))
    first = asyncio.ensure_future(pieces.first.wait()) if pieces else None
    streams = False
    try:
        await asyncio.wait({answered, gone, *([first] if first else [])}, return_when=asyncio.FIRST_COMPLETED)
        if pieces and pieces.first.is_set() and not (answered.done() and not _is_well(answered)):
            streams = True
            return StreamingResponse(_streamed(body, pieces, answered), media_type="text/event-stream")
        if not answered.done():
            return Response(status_code=_CLIENT_GONE)
        predictions = answered.result()
    except asyncio.CancelledError:  # the server stops, and the chat still waits or takes too long
        return JSONResponse(stopping().body, 503)
    finally:
        if not streams:
            answered.cancel()  # a chat that nobody reads leaves the queue
            if pieces:
                pieces.left = True
        gone.cancel()
        if first:
            first.cancel()
    response = completion(body, predictions)
    if not body.stream:
        return response
    return StreamingResponse(iter(list(Chunks(body).of(response))), media_type="text/event-stream")


class _Pieces:
    """The pieces of an answer, from the thread that generates it to the request."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.first = asyncio.Event()
        self.queue: asyncio.Queue[str] = asyncio.Queue()
        self.left = False  # whether nobody reads any more

    def put(self, piece: str) -> None:
        if self.left:
            raise ConnectionAbortedError("the client has closed the connection")
        self.loop.call_soon_threadsafe(self._put, piece)

    def _put(self, piece: str) -> None:
        self.queue.put_nowait(piece)
        self.first.set()


def _is_well(answered: asyncio.Future[Any]) -> bool:
    return not answered.cancelled() and answered.exception() is None and answered.result()[0].error is None


async def _streamed(body: Chat, pieces: _Pieces, answered: asyncio.Future[Any]) -> AsyncIterator[str]:
    """Yield the events of an answer while it is generated. What fails after the first piece is an event, too."""
    chunks = Chunks(body)
    try:
        yield chunks.start()
        while not (answered.done() and pieces.queue.empty()):
            waiting = asyncio.ensure_future(pieces.queue.get())
            await asyncio.wait({waiting, answered}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                await asyncio.sleep(0)  # the last pieces were put before the answer was there
            if waiting.done():
                for event in chunks.pieces(waiting.result()):
                    yield event
            else:
                waiting.cancel()
        try:
            whole = completion(body, answered.result())
        except asyncio.CancelledError:
            yield error_event(stopping())
            return
        except Exception as error:
            yield error_event(error)
            return
        yield chunks.end(whole["choices"][0]["finish_reason"])
        for event in chunks.last(whole["usage"]):
            yield event
    finally:
        pieces.left = True
        answered.cancel()


async def _client_gone(request: Request) -> None:
    """Return when the client has closed the connection. The body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
