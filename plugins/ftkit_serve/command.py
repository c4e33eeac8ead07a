"""The command `ftkit serve`: options, lock, socket, HTTP server. FastAPI and uvicorn are imported when it runs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ftkit.errors import InputError

if TYPE_CHECKING:
    import uvicorn

    from .engine import Engine

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8377, show_default=True, help="Port to listen on; 0: any free port.")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), default=Path("ftkit-serve"), show_default=True,
    help="Folder of all files, jobs and models of the server.",
)  # fmt: skip
@click.option("--api-key-env", metavar="NAME", help="Environment variable with the API key that clients must send.")
@click.option(
    "--models", "models_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML file of base models: NAME: {backend: {plugin: ..., its options}}.  [default: ftkit-tiny, embedded]",
)  # fmt: skip
@click.option(
    "--max-upload-mb", type=click.IntRange(1), default=512, show_default=True, help="Maximum size of an uploaded file."
)
@click.option("--print-models", is_flag=True, help="Print the base models as JSON, with their backends, and exit.")
@click.option("--watch-stdin", is_flag=True, hidden=True, help="Stop when standard input closes.")
def serve(
    host: str,
    port: int,
    data: Path,
    api_key_env: str | None,
    models_file: Path | None,
    max_upload_mb: int,
    print_models: bool,
    watch_stdin: bool,
) -> None:
    """Serve OpenAI's fine-tuning API from this machine: clients use it with base_url http://HOST:PORT/v1."""
    from .models import read_models

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
    models = read_models(models_file)
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars of models that load
    with _exclusive(data), _listening(host, port) as listener:
        from .app import make_app
        from .state import open_server

        address = f"[{host}]" if ":" in host else host
        url = f"http://{address}:{listener.getsockname()[1]}/v1"
        server = open_server(data, models, max_upload_mb << 20)
        app = make_app(server, key, lambda: click.echo(f"ftkit serve: {url}"))
        http_server = _http_server(app, server.engine)
        if watch_stdin:
            _stop_with_stdin(http_server)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it after it has shut down
            http_server.run(sockets=[listener])
    click.echo("ftkit serve: stopped; unfinished jobs resume when it is started again", err=True)


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
        yield


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that is bound to the address. Raises InputError if that fails."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        reason = "another program listens there" if getattr(error, "errno", None) == errno.EADDRINUSE else str(error)
        hint = "choose another port with --port; 0: any free port"
        raise InputError(f"cannot listen on {host}:{port}: {reason}", hint) from None
    with listener:
        yield listener


def _http_server(app: Any, engine: Engine) -> uvicorn.Server:
    """Return uvicorn's server. When it stops, chat requests that still wait get a 503, and no connection is cut."""
    import uvicorn

    class HttpServer(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            engine.reject_chats()
            await super().shutdown(sockets)

    return HttpServer(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))


def _stop_with_stdin(http_server: uvicorn.Server) -> None:
    """Shut down when standard input closes, which happens when the parent process ends."""

    def wait() -> None:
        while os.read(0, 1 << 16):  # not sys.stdin: the interpreter would wait for its lock at the end
            pass
        http_server.should_exit = True

    threading.Thread(target=wait, name="stop-with-stdin", daemon=True).start()
