"""/v1/chat/completions."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from .chat import chunks, completion, example_of, generation_of
from .routes_files import of
from .wire import Chat

router = APIRouter()


@router.post("/chat/completions", response_model=None)
async def create_completion(request: Request, body: Chat) -> Any:
    engine = of(request).engine
    generation = generation_of(body, engine.most_tokens(body.model))
    # One id for all: sampled text depends on the seed, not on what else was asked.
    asked = engine.ask(body.model, [example_of(body, "prompt")], generation)
    answer = completion(body, await asyncio.wrap_future(asked))
    if not body.stream:
        return answer
    usage = body.stream_options is not None and body.stream_options.include_usage
    return StreamingResponse(iter(chunks(answer, usage)), media_type="text/event-stream")
