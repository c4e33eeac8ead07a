"""The key is in no message, log, file or event, also where the provider repeats it encoded or cut."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from ftkit_openai._mask import MASK, Mask
from openai_kit import answer_of, everything, newest, resume, run, stub
from openai_stub import KEY, Stub

from ftkit.errors import FtkitError

__all__ = ["stub"]
ODD = 'abc+/="x&y%41zz\\QQ~key-12345'

ENCODINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "url": lambda k: quote(k, safe=""),
    "url plus": quote_plus,
    "url all": lambda k: "".join(f"%{ord(c):02x}" for c in k),
    "url twice": lambda k: quote(quote(k, safe=""), safe=""),
    "json": lambda k: json.dumps(k)[1:-1],
    "json all": lambda k: "".join(f"\\u{ord(c):04x}" for c in k),
    "json twice": lambda k: json.dumps(json.dumps(k))[3:-3],
    "json all twice": lambda k: "".join(f"\\\\u{ord(c):04X}" for c in k),
    "json some": lambda k: "".join(f"\\u{ord(c):04x}" if i % 3 else c for i, c in enumerate(k)),
    "base64": lambda k: base64.b64encode(k.encode()).decode(),
    "base64 of a header": lambda k: base64.b64encode(f"Bearer {k}".encode()).decode(),
    "base64 with a user": lambda k: base64.b64encode(f"me:{k}!".encode()).decode(),
    "base64 for urls": lambda k: base64.urlsafe_b64encode(k.encode()).decode().rstrip("="),
    "base64 in a url": lambda k: quote(base64.b64encode(k.encode()).decode(), safe=""),
    "html": lambda k: "".join(f"&#{ord(c)};" for c in k),
    "html hex": lambda k: "".join(f"&#x{ord(c):x};" for c in k),
    "hex": lambda k: k.encode().hex(),
}
CUTS: dict[str, Callable[[str], str]] = {
    "whole": str,
    "first 8": lambda k: k[:8],
    "first 20": lambda k: k[:20],
    "last 8": lambda k: k[-8:],
    "last 15": lambda k: k[-15:],
    "middle": lambda k: k[5:19],
    "both": lambda k: f"{k[:9]}...{k[-9:]}",
}


def left(text: str, key: str, encode: Callable[[str], str]) -> list[str]:
    """Return the parts of a key, of 8 characters, that a text contains as they are or encoded."""
    parts = [key[i : i + 8] for i in range(len(key) - 7)]
    return [p for p in parts if p in text or (len(encode(p)) > 8 and encode(p) in text)]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("key", [KEY, ODD, "0123456789abcdef" * 2])
def test_a_secret_is_masked_however_it_is_written(key: str, encoding: str, cut: str) -> None:
    encode = ENCODINGS[encoding]
    said = Mask(key)(f"before {encode(CUTS[cut](key))} after")
    assert said.startswith("before ") and said.endswith(" after") and MASK in said
    assert not left(said, key, encode)


def test_other_text_stays_as_it_is() -> None:
    for text in (
        "",
        "an ordinary text",
        '{"id": "ftjob-1", "note": "50 % of \\u00e9\\n"}',
        "%41%42 \\x41 &#65;",
        "日本語" * 99,
    ):
        assert Mask(KEY)(text) == text == Mask()(text) == Mask(None)(text)
    assert Mask("abc")("xabcx") == f"x{MASK}x" and Mask("abc")("xabcx", short=False) == "xabcx"
    long = "a line of a large file, 100 % as it was\n" * 100_000
    assert Mask(KEY)(long) == long
    assert Mask(KEY)(long + KEY) == long + MASK


PLACES = [("POST", "/v1/files"), ("POST", "/v1/fine_tuning/jobs"), ("GET", "/v1/fine_tuning/jobs/[^/]+"),
          ("GET", "/v1/fine_tuning/jobs/[^/]+/events"), ("POST", "/v1/chat/completions")]  # fmt: skip


@pytest.mark.parametrize("cut", ["whole", "first 20", "last 8"])
@pytest.mark.parametrize("encoding", ["plain", "url all", "json all twice", "base64 of a header"])
def test_a_provider_that_repeats_the_key_everywhere(
    stub: Stub,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    encoding: str,
    cut: str,
) -> None:
    """In errors, headers, events, result files, checkpoints, statuses and answers, with verbose logs."""
    import logging

    monkeypatch.setenv("OPENAI_LOG", "debug")
    for name in ("openai", "httpx2", "httpcore2"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    echo = ENCODINGS[encoding](CUTS[cut](KEY))
    error = {"message": f"no such key: {echo}", "code": f"x-{echo}", "type": "x"}
    for method, path in PLACES:
        for status in (400, 500):
            stub.fail(method, path, status=status, error=error, times=1, headers={"x-key": echo, "x-request-id": echo})
    stub.rate_headers = {"x-key": echo}
    stub.answer = lambda body: f"{answer_of(body)} {echo}"
    shown, events, checkpoints, end = stub.shown, stub.list_events, stub.list_checkpoints, stub.end

    def with_results(job: Any) -> None:
        end(job)
        for id in job["result_files"]:
            stub.contents[id] = f"step,train_loss,note\n1,2.5,{echo}\n".encode()

    def with_echo(page: Any) -> Any:
        for entry in page["data"]:
            entry |= {"message": f"said {echo}", "note": echo}
        return page

    stub.end = with_results  # type: ignore[method-assign]
    stub.shown = lambda id: {**shown(id), "organization_id": echo, "note": echo}  # type: ignore[method-assign]
    stub.list_events = lambda *a: with_echo(events(*a))  # type: ignore[method-assign]
    stub.list_checkpoints = lambda *a: with_echo(checkpoints(*a))  # type: ignore[method-assign]
    said: list[str] = []
    directory: Path | None = None
    for _ in range(20):
        try:
            done = resume(directory, create_again=True) if directory else run(stub, tmp_path, patience=0.5)
            break
        except FtkitError as failure:
            said.append(f"{failure} {failure.hint}")
            directory = newest(tmp_path)
    assert done.record().status == "done" and len(said) >= 3
    captured = capfd.readouterr()
    text = "\n".join([*said, captured.out, captured.err, everything(tmp_path / "runs")])
    assert MASK in text
    assert not left(text, KEY, ENCODINGS[encoding] if "base64" not in encoding else str)
    assert echo not in text


def test_a_token_of_azure_is_masked_too(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.secret"
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    monkeypatch.setenv("AZURE_TOKEN", token)
    azure = {
        "subscription": "s",
        "resource_group": "g",
        "resource": "r",
        "management_url": stub.url.removesuffix("/v1"),
    }
    for status in (401, 400):
        error = {"message": f"no: {quote(token)} {token[:12]}", "code": None, "type": "x"}
        stub.fail("PUT", ".*/deployments/.*", status=status, error=error)
    for attempt in range(2):
        with pytest.raises(FtkitError) as caught:
            resume(newest(tmp_path)) if attempt else run(stub, tmp_path, dialect="azure", azure=azure)
        assert MASK in str(caught.value) and token[:12] not in str(caught.value)
    assert token[:12] not in everything(tmp_path / "runs")


def test_a_result_file_in_another_encoding_is_masked_too(stub: Stub, tmp_path: Path) -> None:
    stub.fail("GET", "/v1/files/[^/]+/content", body=f"step,train_loss,note\n1,2.5,{KEY}\n".encode("utf-16"))
    done = run(stub, tmp_path)
    written = done.path("train", "results.csv").read_text()
    assert MASK in written and not left(written, KEY, str)
