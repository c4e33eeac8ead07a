"""/v1/chat/completions."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from .chat import chunks, completion, example_of, generation_of
from .errors import stopping
from .routes_files import of
from .wire import Chat

router = APIRouter()


@router.post("/chat/completions", response_model=None)
async def create_completion(request: Request, body: Chat) -> Any:
    engine = of(request).engine
    generation = generation_of(body, engine.most_tokens(body.model))
    # One id for all: sampled text depends on the seed, not on what else was asked.
    asked = engine.chat(body.model, example_of(body, "prompt"), generation)
    try:
        predictions = await asyncio.wrap_future(asked)
    except asyncio.CancelledError:  # the server stops: this waited for its turn, or takes too long
        return JSONResponse(stopping().body, 503)  # raised, it would need a thread, which cannot be had any more
    answer = completion(body, predictions)
    if not body.stream:
        return answer
    usage = body.stream_options is not None and body.stream_options.include_usage
    return StreamingResponse(iter(chunks(answer, usage)), media_type="text/event-stream")
