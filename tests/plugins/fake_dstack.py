"""A stand-in for dstack's command line and its server: it keeps machines in a folder and drives them through every state.

    FAKE_DSTACK=FOLDER python fake_dstack.py ps --json

FOLDER/faults.json says what goes wrong (see `test_cloud_dstack.py`), FOLDER/state.json holds the runs. The machine is this
one: `attach` lets ssh know the run's name as a host, in FOLDER/ssh_config.
"""

import contextlib
import datetime
import fcntl
import json
import os
import signal
import sys
import time
import uuid

FOLDER = os.environ["FAKE_DSTACK"]
FINISHED = ("terminated", "failed", "done")
PRICE = 1.19


@contextlib.contextmanager
def server():
    """Hold the state, and write it back."""
    with open(os.path.join(FOLDER, "lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = os.path.join(FOLDER, "state.json")
        state = {"runs": [], "calls": []}
        with contextlib.suppress(FileNotFoundError), open(path) as file:
            state = json.load(file)
        try:
            yield state
        finally:  # a refusal ends the program
            with open(path + ".new", "w") as file:
                json.dump(state, file, indent=1)
            os.replace(path + ".new", path)


def faults():
    try:
        with open(os.path.join(FOLDER, "faults.json")) as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def refuse(text):
    print(text)  # as dstack does: on standard output
    sys.exit(1)


def gone():
    refuse("Failed to connect to dstack server http://127.0.0.1:3000")


def count(state, name):
    """Return how often this was asked before."""
    state.setdefault("counts", {})[name] = state.setdefault("counts", {}).get(name, 0) + 1
    return state["counts"][name] - 1


def finish(run, status, reason):
    run.update(status=status, reason=reason, finished=time.time())


def step(run, bad):
    """Let time pass for one run, each time that somebody looks."""
    run["looks"] += 1
    if run["status"] == "submitted" and bad.get("no_capacity"):
        finish(run, "failed", "failed_to_start_due_to_no_capacity")
    elif run["status"] == "submitted":
        run["status"] = "provisioning"
    elif run["status"] == "provisioning" and not bad.get("never_boots"):
        run["status"] = "running"
    elif run["status"] == "running" and bad.get("taken_back_after") is not None:
        if os.path.exists(os.path.join(FOLDER, "take_back")):
            finish(run, "failed", "interrupted_by_no_capacity")
    elif run["status"] == "terminating" and not bad.get("keeps_terminating"):
        finish(run, "terminated", "terminated_by_user")


def iso(moment):
    return moment and datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat()


def shown(run):
    booted = run["status"] not in ("submitted", "failed") or run["reason"] == "interrupted_by_no_capacity"
    resources = {"cpus": 8, "memory_mib": 32768, "gpus": [{"name": "A100", "memory_mib": 81920}], "spot": False}
    machine = {
        "backend": "runpod",
        "instance_type": {"name": "NVIDIA A100 80GB PCIe", "resources": resources},
        "instance_id": "pod" + run["id"][:8],
        "hostname": "127.0.0.1",
        "region": "EU-NL-1",
        "price": PRICE,
        "username": "root",
        "ssh_port": 22,
        "dockerized": False,
    }
    began = run["submitted"]
    submission = {
        "id": run["id"],
        "submission_num": 0,
        "submitted_at": iso(began),
        "last_processed_at": iso(time.time()),
        "finished_at": iso(run["finished"]),
        "status": {"done": "done"}.get(run["status"], run["status"]),
        "termination_reason": run["reason"],
        "job_provisioning_data": machine if booted else None,
    }
    seconds = (run["finished"] or time.time()) - began
    return {
        "id": run["id"],
        "project_name": "main",
        "user": "me",
        "submitted_at": iso(began),
        "last_processed_at": iso(time.time()),
        "status": run["status"],
        "run_spec": {
            "run_name": run["name"],
            "repo_id": "none",
            "repo_data": {"repo_type": "virtual"},
            "configuration": run["configuration"],
            "ssh_key_pub": "key",
        },
        "jobs": [],
        "latest_job_submission": submission,
        "cost": round(PRICE * seconds / 3600, 6) if booted else 0.0,
    }


def ps(arguments):
    with server() as state:
        bad = faults()
        state["calls"].append("ps")
        if count(state, "ps") in bad.get("ps_fails", ()):
            gone()
        running = any(run["status"] == "running" for run in state["runs"])
        if bad.get("gone_while_running") and running and count(state, "gone") < bad["gone_while_running"]:
            gone()
        stopping = state.get("counts", {}).get("stop")
        if bad.get("gone_at_end") and stopping and count(state, "gone") < bad["gone_at_end"]:
            gone()
        for run in state["runs"]:
            step(run, bad)
        runs = [run for run in state["runs"] if "--all" in arguments or run["status"] not in FINISHED]
        if not runs:  # as dstack does: the last one that has finished
            runs = state["runs"][-1:]
        print(json.dumps({"project": "main", "runs": [shown(run) for run in reversed(runs)]}))


def apply(arguments):
    import re

    with server() as state:
        bad = faults()
        state["calls"].append("apply")
        path = arguments[arguments.index("--file") + 1]
        with open(path) as file:
            text = file.read()
        state["yaml"] = text
        if bad.get("apply_refused"):
            refuse("No backends are configured in the project main")
        if bad.get("apply_gone"):
            gone()
        name = re.search(r"^name: (\S+)$", text, re.M)[1]
        active = [run for run in state["runs"] if run["name"] == name and run["status"] not in FINISHED]
        if active:  # as dstack does: the same configuration is not applied twice
            state["twice"] = True
            print("Use --force to apply anyway.")
            return
        label = re.search(r"ftkit-run: (\S+)", text)[1]
        configuration = {"type": "task", "name": name, "commands": ["true"], "tags": {"ftkit-run": label}}
        run = {"id": str(uuid.uuid4()), "name": name, "status": "submitted", "reason": None, "looks": 0}
        run |= {"submitted": time.time(), "finished": None, "configuration": configuration}
        state["runs"].append(run)
    if bad.get("apply_lost"):
        gone()
    if bad.get("apply_hangs"):
        time.sleep(60)
    print(f"Run {name} submitted, detaching...")


def stop(arguments):
    with server() as state:
        bad = faults()
        state["calls"].append("abort" if "--abort" in arguments else "stop")
        number = count(state, "stop")
        if bad.get("gone_at_end") and count(state, "gone") < bad["gone_at_end"]:
            gone()
        if bad.get("refuses_to_stop") and number < bad["refuses_to_stop"]:
            refuse("Internal server error")
        for run in state["runs"]:
            if run["name"] == arguments[-1] and run["status"] not in FINISHED:
                if "--abort" in arguments:
                    finish(run, "terminated", "aborted_by_user")
                else:
                    run["status"] = "terminating"
                print("Stopped")
                return
        refuse(f"Run {arguments[-1]} not found")


def offer(arguments):
    if faults().get("offer_gone"):
        gone()
    resources = {"cpus": 8, "memory_mib": 32768, "gpus": [{"name": "A100", "memory_mib": 81920}], "spot": False}
    kind = {"name": "NVIDIA A100 80GB PCIe", "resources": resources}
    found = {"backend": "runpod", "instance": kind, "region": "EU-NL-1", "availability": "available"}
    offers = [] if faults().get("no_offers") else [{**found, "price": 1.4}, {**found, "price": PRICE}]
    asked = {"resources": {"gpu": {"name": ["A100"]}}, "max_price": None}
    print(json.dumps({"project": "main", "user": "me", "requirements": asked, "offers": offers, "total_offers": 2}))


def attach(arguments):
    if faults().get("no_ssh"):
        refuse("Can't connect to the remote host")
    name, path = arguments[0], os.path.join(FOLDER, "ssh_config")
    with open(os.path.join(FOLDER, "host")) as file:
        entry = file.read().replace("NAME", name)
    with open(path, "w") as file:
        file.write(entry)

    def end(*_):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        sys.exit(0)

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    print("Attached")
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.2)
    end()


def main():
    verb, *arguments = sys.argv[1:]
    if verb == "--version":
        print("0.22.5")
        return
    {"ps": ps, "apply": apply, "stop": stop, "offer": offer, "attach": attach}[verb](arguments)


main()
