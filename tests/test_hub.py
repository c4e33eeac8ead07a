"""Models and data of a hub: each run is of one commit, and what goes wrong is one short message.

The clients are the real ones, the hub is tests/hub.py on loopback, and the commands run in processes of their own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub import TOKEN, Fault, Hub, Repo, folder_files

from ftkit.files import read_json

ROOT = Path(__file__).parents[1]
MODEL, DATA = "acme/tiny", "acme/chats"
SLOW = 300  # seconds

pytest.importorskip("trl")


def table(rows: int, says: str) -> bytes:
    lines = [
        {"id": f"r{i}", "dialogue": f"Ann: {says} {i}?\nBob: yes", "summary": f"Bob {says} {i}"} for i in range(rows)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def splits(says: str = "sees") -> dict[str, bytes]:
    return {
        "train.jsonl": table(12, f"{says} a"),
        "validation.jsonl": table(4, f"{says} b"),
        "test.jsonl": table(6, f"{says} c"),
    }


def other_weights(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the model with one byte of its weights changed."""
    weights = bytearray(files["model.safetensors"])
    weights[-1] ^= 1
    return {**files, "model.safetensors": bytes(weights)}


class Shop:
    """A hub with one model and one dataset, and a machine whose cache is `home`."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.files = folder_files(ROOT / "plugins" / "ftkit_quickstart" / "model")
        self.model, self.data = hub.add("models", MODEL), hub.add("datasets", DATA)
        self.model.commit(self.files)
        self.data.commit(splits())
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(
            json.dumps(
                {
                    "name": "of-the-hub",
                    "dataset": {"path": DATA, "columns": {"input": "dialogue", "target": "summary"}},
                    "prompt": {"template": "{input}\nSummary:"},
                    "backend": {
                        "plugin": "trl-sft-lora", "base_model": MODEL, "chat_template": "plain", "max_steps": 2,
                        "micro_batch_size": 2, "sequence_len": 128,
                    },
                    "generation": {"max_new_tokens": 4},
                    "evaluator": "rouge",
                }
            )
        )  # fmt: skip

    def ftkit(self, *arguments: object, token: str | None = None) -> subprocess.CompletedProcess[str]:
        env = {
            **os.environ,
            **self.hub.variables(self.folder / "home", token),
            "COLUMNS": "120",
            "OMP_NUM_THREADS": "1",
        }
        line = [sys.executable, "-m", "ftkit", *map(str, arguments)]
        done = subprocess.run(line, capture_output=True, text=True, cwd=self.folder, env=env, timeout=SLOW)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def run(self, *sets: str) -> subprocess.CompletedProcess[str]:
        return self.ftkit("run", self.recipe, "--out", self.folder / "runs", *(a for s in sets for a in ("--set", s)))

    def check(self, *sets: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
        return self.ftkit("check", self.recipe, *(a for s in sets for a in ("--set", s)), token=token)

    def newest(self) -> Path:
        return max((self.folder / "runs").iterdir(), key=lambda path: path.stat().st_ctime_ns)

    def downloads(self, name: str) -> set[str]:
        """Return the revisions by which files of a repository were downloaded; a HEAD request downloads nothing.

        peft asks (HEAD) for the newest config.json, for the size of the vocabulary alone.
        """
        asked = (re.search(rf"^GET .*/{name}/resolve/([^/]+)/", line) for line in self.hub.requests)
        return {match[1] for match in asked if match}


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with Hub() as hub:
        yield Shop(hub, tmp_path)


def commits(run: Path) -> tuple[str, str]:
    lock = read_json(run / "lock.json")
    return lock["model"]["commit"], lock["data"]["revision"]


# ---------------------------------------------------------------- one commit


def test_runs_are_of_one_commit_that_their_lock_names(shop: Shop) -> None:
    first = shop.model.main, shop.data.main
    assert shop.run().returncode == 0
    one = shop.newest()
    assert commits(one) == first
    assert shop.downloads(DATA) == {first[1]}
    assert shop.downloads(MODEL) == {first[0]}
    assert not shop.hub.asked(rf"GET /{MODEL}/resolve/main/")
    assert len(shop.hub.asked(rf"/api/datasets/{DATA}/revision/main")) == 1

    shop.model.commit(other_weights(shop.files))  # the branch moves
    done = shop.run()
    two = shop.newest()
    assert done.returncode == 0 and commits(two) == (shop.model.main, first[1]) and shop.model.main != first[0]
    assert "are reused" not in done.stderr, "another commit is another baseline"

    done = shop.run(f"backend.revision={first[0]}")
    assert done.returncode == 0 and commits(shop.newest()) == first
    assert f"predictions of {one.name} are reused" in done.stderr

    shop.hub.stop()  # the machine is offline from now on
    done = shop.run()
    assert done.returncode == 0, done.stderr
    assert (
        commits(shop.newest()) == (shop.model.main, first[1]) and f"predictions of {two.name} are reused" in done.stderr
    )


def test_a_resumed_run_keeps_its_commit_when_the_branch_moves(shop: Shop) -> None:
    first = shop.model.main
    shop.hub.faults.append(Fault(r"GET .*model\.safetensors", status=403, times=50))
    done = shop.run()
    run = shop.newest()
    assert (
        done.returncode == 2 and "gated or private" in done.stderr and read_json(run / "run.json")["status"] == "failed"
    )
    shop.hub.faults.clear()
    shop.model.commit(other_weights(shop.files))
    done = shop.ftkit("run", "--resume", run)
    assert done.returncode == 0 and commits(run)[0] == first
    assert shop.downloads(MODEL) == {first}
    assert read_json(run / "baseline" / "key.json")["identity"]["commit"] == first
    assert "since this run began" not in done.stderr

    # Training in a process of its own, as `ftkit serve` and launchers do it.
    (run / "train" / "model.json").unlink()
    env = {**os.environ, **shop.hub.variables(shop.folder / "home"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "ftkit.run.worker", str(run)], env=env, check=True, timeout=SLOW)
    assert shop.downloads(MODEL) == {first}


# ---------------------------------------------------------------- what goes wrong

Setup = Callable[[Shop], object]


def fault(pattern: str, **facts: Any) -> Setup:
    return lambda shop: shop.hub.faults.append(Fault(pattern, **facts))


def rename(shop: Shop) -> None:
    for kind, repo in (("models", shop.model), ("datasets", shop.data)):
        shop.hub.repos[(kind, "new/home")] = repo
        shop.hub.repos[(kind, repo.name)] = Repo(repo.name, renamed="new/home")


def close(which: str) -> Setup:
    return lambda shop: setattr(getattr(shop, which), "gated", True)


def hide(shop: Shop) -> None:
    shop.model.private = shop.data.private = True


CONFIG, ROWS = r"GET /acme/tiny/.*config\.json", r"GET /datasets/acme/chats/.*train"


@pytest.mark.parametrize(
    ("setup", "token"),
    [
        (rename, None),
        (close("model"), TOKEN),
        (fault("/api/", status=429, headers={"Retry-After": "1"}, times=2), None),
        (fault(CONFIG, status=429, headers={"Retry-After": "1"}, times=1), None),
        (fault(r"/api/.*/revision/main", status=503, times=1), None),
        (fault(r"GET .*tokenizer\.json", cut=100, times=1), None),
    ],
    ids=["renamed", "gated-with-token", "429-api", "429-file", "503-once", "cut-once"],
)
def test_what_a_client_gets_over(shop: Shop, setup: Setup, token: str | None) -> None:
    setup(shop)
    done = shop.check(token=token)
    assert done.returncode == 0 and "recipe.yaml: ok" in done.stderr, done.stderr


def both(*setups: Setup) -> Setup:
    return lambda shop: [setup(shop) for setup in setups]


LATER = {"Retry-After": "3600"}
GATED = [
    ("model 'acme/tiny' is gated or private", "accept its licence at huggingface.co/acme/tiny"),
    ("dataset 'acme/chats' is gated or private", "accept its licence at huggingface.co/datasets/acme/chats"),
]
PRIVATE = [
    ("there is no model 'acme/tiny' on the hub (or it is private)", "hf auth login"),
    ("there is no dataset 'acme/chats' on the hub (or it is private)", "hf auth login"),
]
UNKNOWN = [
    ("there is no dataset 'acme/chat' on the hub", "check the spelling of dataset.path"),
    ("there is no model 'a/b/c' on the hub", "check the spelling of backend.base_model"),
]
REVISION = [
    ("model 'acme/tiny' has no revision 'v9'", "backend.revision is a branch, a tag or a commit"),
    ("dataset 'acme/chats' has no revision 'v9'", "dataset.revision is a branch, a tag or a commit"),
]


def each(message: str, fix: str) -> list[tuple[str, str]]:
    return [(f"{what} cannot be downloaded: {message}", fix) for what in ("model 'acme/tiny'", "dataset 'acme/chats'")]


@pytest.mark.parametrize(
    ("setup", "sets", "token", "said"),
    [
        (both(close("model"), close("data")), [], None, GATED),
        (hide, [], None, PRIVATE),
        (hide, [], "hf_wrong", [("the hub does not know the token", "set HF_TOKEN to a valid token")]),
        (hide, ["dataset.path=acme/chat", "backend.base_model=a/b/c"], TOKEN, UNKNOWN),
        (hide, ["backend.revision=v9", "dataset.revision=v9"], TOKEN, REVISION),
        (fault("/api/", status=429, headers=LATER), [], None, each("the hub received too many requests", "in 3600 sec")),
        (both(fault(CONFIG, status=429, headers=LATER), fault(ROWS, status=429, headers=LATER)), [], None,
         each("the hub received too many requests", "in 3600 seconds")),
        (both(fault(CONFIG, status=503), fault(ROWS, status=500)), [], None, each("the hub has a failure", "run it again")),
        (fault("/api/.*/revision/", status=503), [], None, each("the hub has a failure (status 503)", "run it again")),
        (both(fault(r"GET .*tokenizer\.json", cut=100), fault(ROWS, cut=100)), [], None,
         each("the connection to the hub broke", "run it again")),
        (lambda shop: shop.hub.stop(), [], None, [("the hub cannot be reached", "connect once")]),
    ],
    ids=["gated", "private", "wrong-token", "unknown", "revision", "429-api", "429-file", "5xx-file", "5xx-api", "cut",
         "offline"],
)  # fmt: skip
def test_what_stops_a_run_is_one_message_with_its_fix(
    shop: Shop, setup: Setup, sets: list[str], token: str | None, said: list[tuple[str, str]]
) -> None:
    setup(shop)
    done = shop.check(*sets, token=token)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("not estimated", "note"))]
    for message, fix in said:
        at = next((i for i, line in enumerate(lines) if message in line), None)
        assert at is not None and fix in lines[at + 1] and len(lines[at]) < 300, done.stderr
    assert "http://" not in done.stderr


def test_nothing_is_spent_or_left_where_the_model_cannot_be_had(shop: Shop) -> None:
    shop.model.gated = True
    done = shop.run()
    assert done.returncode == 2 and "gated" in done.stderr
    assert not list((shop.folder / "runs").glob("*/run.json")) and not shop.hub.asked("safetensors")


def test_offline_the_newest_copy_in_the_cache_does_not_stand_in_for_a_revision(shop: Shop) -> None:
    assert shop.check().returncode == 0
    old = shop.data.main
    shop.data.commit(splits("hears"))
    shop.hub.stop()
    assert shop.check(f"dataset.revision={old}").returncode == 0
    done = shop.check(f"dataset.revision={'f' * 40}")
    assert done.returncode == 2 and f"the local cache holds commit {old[:12]}" in done.stderr, done.stderr
