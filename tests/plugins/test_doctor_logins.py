"""What `ftkit doctor` says of logins: the providers are servers on loopback, and no key is ever shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai_stub import KEY, MODEL, Stub
from wandb_stub import Server

from ftkit.records import Diagnosis

pytest.importorskip("openai")

from ftkit_openai import ManagedOptions, OpenAIManaged
from ftkit_wandb import Wandb, WandbOptions


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which nobody has logged in, and from which nothing but itself can be reached."""
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "MY_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)


def asked(diagnose: Callable[[Any], Any], options: Any = None) -> dict[str, Diagnosis]:
    found = {d.what: d for d in diagnose(options)}
    assert KEY[:20] not in repr(found) and "0123456789abcdef" not in repr(found)
    return found


def managed(url: str, **more: Any) -> ManagedOptions:
    return ManagedOptions(base_model=MODEL, base_url=url, timeout=5, patience=1, **more)


# ---------------------------------------------------------------- openai-managed


def test_without_a_key_the_provider_is_not_set_up_and_a_recipe_that_needs_it_is_wrong(tmp_path: Path) -> None:
    found = asked(OpenAIManaged.diagnose)["key"]
    assert found.ok is None and found.fix and "OPENAI_API_KEY" in found.fix
    found = asked(OpenAIManaged.diagnose, ManagedOptions(base_model=MODEL, api_key_env="MY_KEY"))["key"]
    assert found.ok is False and found.fix and "MY_KEY" in found.fix and found.see == "provider login"
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={KEY}\n")
    assert asked(OpenAIManaged.diagnose)["key"].ok is True


def test_a_key_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Stub() as stub:
        found = asked(OpenAIManaged.diagnose, managed(stub.url))
    assert {d.ok for d in found.values()} <= {True, None} and found["account"].ok is True and found["host"].ok is True


def test_a_key_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}wrong")
    with Stub() as stub:
        found = asked(OpenAIManaged.diagnose, managed(stub.url))["account"]
    assert found.ok is False and found.fix and found.see == "provider login"


def test_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Stub() as stub:
        found = asked(OpenAIManaged.diagnose, managed(stub.url).model_copy(update={"base_model": "gpt-0"}))["account"]
    assert found.ok is False and "gpt-0" in found.detail


@pytest.mark.parametrize("options", [None, ManagedOptions(base_model=MODEL), managed("http://127.0.0.1:9/v1")])
def test_a_host_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, options: ManagedOptions | None) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = asked(OpenAIManaged.diagnose, options)["host"]
    assert found.ok is False and "cannot be reached" in found.detail and "refused" in found.detail


def test_a_key_with_a_line_break_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\r\nX-Other: {KEY}")
    assert asked(OpenAIManaged.diagnose, managed("http://127.0.0.1:9/v1"))["key"].ok is False


# ---------------------------------------------------------------- wandb

WANDB_KEY = "0123456789abcdef" * 2 + "01234567"


def test_without_a_login_runs_are_recorded_offline() -> None:
    pytest.importorskip("wandb")
    found = asked(Wandb.diagnose)["login"]
    assert found.ok is None and found.fix and "wandb login" in found.fix
    assert asked(Wandb.diagnose, WandbOptions())["login"].ok is None
    assert asked(Wandb.diagnose, WandbOptions(mode="online"))["login"].ok is False
    assert asked(Wandb.diagnose, WandbOptions(mode="offline"))["login"].ok is True


@pytest.mark.parametrize(
    ("kind", "what", "said"),
    [
        ("denies", "login", "does not know the key"),
        ("refuses", "server", "cannot be reached"),
        ("raises", "server", "status 500"),
        ("babbles", "server", "does not answer as a W&B server"),
        ("hangs", "server", "cannot be reached"),
    ],
)
def test_servers_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, kind: str, what: str, said: str) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    with Server(kind) as server:
        found = asked(Wandb.diagnose, WandbOptions(base_url=server.url))[what]
    assert found.ok is False and said in found.detail and found.fix


def test_a_login_that_works_also_from_the_file_of_wandb_login(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    with Server("works") as server:
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1\n  login user\n  password {WANDB_KEY}\n")
        assert asked(Wandb.diagnose, WandbOptions(base_url=server.url))["login"].ok is True
