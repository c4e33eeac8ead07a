"""/v1/chat/completions."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from .chat import chunks, completion, example_of, generation_of
from .errors import stopping
from .state import server_of
from .wire import Chat

router = APIRouter()


@router.post("/chat/completions", response_model=None)
async def create_completion(request: Request, body: Chat) -> Any:
    engine = server_of(request).engine
    generation = generation_of(body, engine.max_tokens(body.model))
    # All prompts have the same id: sampled text depends on the seed, not on other requests.
    chat = engine.submit_chat(body.model, example_of(body, "prompt"), generation)
    try:
        predictions = await asyncio.wrap_future(chat)
    except asyncio.CancelledError:  # the server stops, and the chat still waits or takes too long
        return JSONResponse(stopping().body, 503)  # not raised: its handler needs a thread, and no new one can start
    response = completion(body, predictions)
    if not body.stream:
        return response
    usage = body.stream_options is not None and body.stream_options.include_usage
    return StreamingResponse(iter(chunks(response, usage)), media_type="text/event-stream")
