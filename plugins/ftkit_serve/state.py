"""The parts of the server that the routes share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastapi import Request

from .batches import Batches
from .engine import Engine
from .files import Files
from .jobs import Jobs
from .models import ServedModel
from .runs import RunModel
from .store import Database


@dataclass
class Server:
    """The parts of one server. The application keeps it as `app.state.server`."""

    database: Database
    files: Files
    jobs: Jobs
    engine: Engine
    batches: Batches
    max_upload: int  # bytes of one file


def open_server(
    data: Path, models: dict[str, ServedModel], max_upload: int, runs: dict[str, RunModel] | None = None
) -> Server:
    """Open the data directory, which the caller has locked. `max_upload` is in bytes."""
    database = Database(data / "server.sqlite")
    files = Files(data, database)
    engine = Engine(data, database, models, runs or {})
    jobs = Jobs(data, database, files, models)
    return Server(database, files, jobs, engine, Batches(data, database, files, engine), max_upload)


def server_of(request: Request) -> Server:
    """Return the server that got a request."""
    server: Server = request.app.state.server
    return server
