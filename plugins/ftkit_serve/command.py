"""The command `ftkit serve`: options, lock, socket, HTTP server. FastAPI and uvicorn are imported when it runs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import json
import os
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftkit.errors import InputError

from .shortage import explained, limit_logs

if TYPE_CHECKING:
    import uvicorn

    from .models import ServedModel
    from .runs import RunModel
    from .state import Server

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8377, show_default=True, help="Port to listen on; 0: any free port.")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False),
    help="Folder of all files, jobs and models of the server.  [default: ftkit-serve; with RUNS: one that is removed]",
)  # fmt: skip
@click.option("--api-key-env", metavar="NAME", help="Environment variable with the API key that clients must send.")
@click.option(
    "--models", "models_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML file of base models: NAME: {backend: {plugin: ..., its options}}.  [default: ftkit-tiny, embedded; with "
    "RUNS: none]",
)  # fmt: skip
@click.option(
    "--max-upload-mb", type=click.IntRange(1), default=512, show_default=True, help="Maximum size of an uploaded file."
)
@click.option("--print-models", is_flag=True, help="Print the base models as JSON, with their backends, and exit.")
@click.option("--watch-stdin", is_flag=True, hidden=True, help="Stop when standard input closes.")
def serve(
    runs: tuple[Path, ...],
    host: str,
    port: int,
    data: Path | None,
    api_key_env: str | None,
    models_file: Path | None,
    max_upload_mb: int,
    print_models: bool,
    watch_stdin: bool,
) -> None:
    """Serve OpenAI's API from this machine: clients use it with base_url http://HOST:PORT/v1.

    RUNS are finished runs whose models answer. Without them, the server fine-tunes and serves base models.
    """
    from .models import check_models, read_models

    if print_models:
        entries = {name: model.model_dump(mode="json") for name, model in read_models(models_file).items()}
        click.echo(json.dumps(entries, indent=2))
        return
    missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ftkit serve needs {', '.join(missing)}", "pip install 'ftkit[serve]'")
    key = _key(api_key_env)
    if key is None and host not in LOOPBACK:
        click.echo(f"warning: without --api-key-env, everyone who can reach {host} can use this server", err=True)
    models = {} if runs and models_file is None else read_models(models_file)
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of models that load
    if models_file is not None:
        check_models(models)
    os.umask(0o077)  # all that this process and its children write is for its user only
    with _folder(data, bool(runs)) as data, _exclusive(data), _listening(host, port) as listener:
        from .app import make_app
        from .http_server import make_http_server

        address = f"[{host}]" if ":" in host else host
        url = f"http://{address}:{listener.getsockname()[1]}/v1"
        served = _runs(runs)
        server = _opened(data, models, max_upload_mb << 20, served)
        server.engine.load_runs()
        for name in served:
            click.echo(f"model: {name}", err=True)
        app = make_app(server, key, lambda: click.echo(f"ftkit serve: {url}"))
        http_server = make_http_server(app, server.engine)
        limit_logs()
        if watch_stdin:
            _stop_with_stdin(http_server)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it after it has shut down
            http_server.run(sockets=[listener])
    click.echo("ftkit serve: stopped; unfinished jobs resume when it is started again", err=True)


@contextlib.contextmanager
def _folder(data: Path | None, runs: bool) -> Iterator[Path]:
    """Give the data folder: where only runs are served and none is named, one that is removed at the end."""
    if data is not None or not runs:
        yield data or Path("ftkit-serve")
        return
    with tempfile.TemporaryDirectory(prefix="ftkit-serve-") as folder:
        yield Path(folder)


def _runs(paths: tuple[Path, ...]) -> dict[str, RunModel]:
    """Return the models of finished runs by name. Raises InputError for a run that cannot be served."""
    if not paths:
        return {}
    from .runs import read_runs

    return read_runs(paths)


def _key(name: str | None) -> str | None:
    """Return the key in an environment variable. Raises InputError if it is not set."""
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise InputError(f"--api-key-env: the environment variable {name} is not set", f"export {name}=...")
    return key


@contextlib.contextmanager
def _exclusive(data: Path) -> Iterator[None]:
    """Lock the data directory. Raises InputError if another server uses it, or if it cannot be written."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        lock = open(data / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise InputError(f"cannot use {data}: {error.strerror}", "choose another folder with --data") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another server uses {data}", "stop it, or choose another folder with --data") from None
        _make_private(data)
        yield


def _make_private(data: Path) -> None:
    """Take the rights of other users from what an earlier version wrote in the data directory."""
    for own in ("server.sqlite*", ".lock", "server.log", "files", "jobs", "batches", "base"):
        for root in data.glob(own):
            for path in (root, *root.rglob("*")):
                if not path.is_symlink() and path.stat().st_mode & 0o077:
                    with contextlib.suppress(PermissionError):  # another user's file
                        path.chmod(path.stat().st_mode & 0o700)


def _opened(data: Path, models: dict[str, ServedModel], max_upload: int, runs: dict[str, RunModel]) -> Server:
    """Open the data directory. `max_upload` is in bytes. Raises InputError if that fails, as on a full disk."""
    from .state import open_server

    try:
        return open_server(data, models, max_upload, runs)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"cannot use {data}: {explained(error)}", "correct that, then start again") from None


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that is bound to the address. Raises InputError if that fails."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # now: a client that reads the printed URL can connect, and no other server gets the port
    except (OSError, OverflowError) as error:
        reason = "another program listens there" if getattr(error, "errno", None) == errno.EADDRINUSE else str(error)
        hint = "choose another port with --port; 0: any free port"
        raise InputError(f"cannot listen on {host}:{port}: {reason}", hint) from None
    with listener:
        yield listener


def _stop_with_stdin(http_server: uvicorn.Server) -> None:
    """Shut down when standard input closes, which happens when the parent process ends."""

    def wait() -> None:
        while os.read(0, 1 << 16):  # not sys.stdin: the interpreter would wait for its lock at the end
            pass
        http_server.should_exit = True

    threading.Thread(target=wait, name="stop-with-stdin", daemon=True).start()
