"""The command `ftkit serve`. FastAPI and uvicorn are imported when it runs."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import click

from ftkit.errors import InputError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8377, show_default=True, help="Port to listen on; 0 takes a free one.")
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), default=Path("ftkit-serve"), show_default=True,
    help="Folder of everything the server knows: files, jobs, models.",
)  # fmt: skip
@click.option("--api-key-env", metavar="NAME", help="Environment variable with the key that clients must send.")
@click.option(
    "--models", "models_file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML file of base models: NAME: {backend: {plugin: ..., its options}}.  [default: ftkit-tiny, embedded]",
)  # fmt: skip
@click.option("--max-upload-mb", type=click.IntRange(1), default=512, show_default=True, help="Largest file taken.")
@click.option("--watch-stdin", is_flag=True, hidden=True, help="End when standard input closes.")
def serve(
    host: str,
    port: int,
    data: Path,
    api_key_env: str | None,
    models_file: Path | None,
    max_upload_mb: int,
    watch_stdin: bool,
) -> None:
    """Serve OpenAI's fine-tuning API from this machine: clients use it with base_url http://HOST:PORT/v1."""
    missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"ftkit serve needs {', '.join(missing)}", "pip install 'ftkit[serve]'")
    key = _key(api_key_env)
    if key is None and host not in LOOPBACK:
        click.echo(f"warning: no --api-key-env: whoever reaches {host} can use this server", err=True)
    from .models import read_models

    models = read_models(models_file)
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of a model that loads
    with _exclusive(data), _listening(host, port) as listener:
        from .app import make_app, open_server
        from .runner import Runner

        where = f"[{host}]" if ":" in host else host
        url = f"http://{where}:{listener.getsockname()[1]}/v1"
        server = open_server(data, models, max_upload_mb << 20)
        app = make_app(server, key, lambda: click.echo(f"ftkit serve: {url}"))
        runner = Runner(app, server.engine)
        if watch_stdin:
            _stop_with_stdin(runner)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has already shut down when it raises this
            runner.run(sockets=[listener])
    click.echo("ftkit serve: stopped; unfinished jobs go on when it is started again", err=True)


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise InputError(f"--api-key-env: the environment variable {name} is not set", f"export {name}=...")
    return key


@contextlib.contextmanager
def _exclusive(data: Path) -> Iterator[None]:
    """Hold the data directory; a second server on it gets an InputError."""
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
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        why = "another program listens there" if getattr(error, "errno", None) == 98 else str(error)
        raise InputError(
            f"cannot listen on {host}:{port}: {why}", "choose another with --port; 0 takes a free one"
        ) from None
    with listener:
        yield listener


def _stop_with_stdin(runner: object) -> None:
    """Shut down when standard input closes: when the process that started this one is gone."""
    import threading

    def wait() -> None:
        while os.read(0, 1 << 16):  # not sys.stdin: its lock would be held when the interpreter ends
            pass
        runner.should_exit = True  # type: ignore[attr-defined]

    threading.Thread(target=wait, daemon=True).start()
