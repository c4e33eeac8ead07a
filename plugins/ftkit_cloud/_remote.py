"""The remote side of a run: one file of the standard library alone, copied to the machine that executes the run.

    python remote.py VERB JOB

JOB is a folder: job.json says what to do, an archive holds what travels. One process, the supervisor, owns it: it holds
JOB/lock for as long as it lives, makes the environment, runs `ftkit run --resume DIR --on here`, and writes what it does
to JOB/status.json. Nothing that it is given in its environment is written to a file.

    start    start the supervisor, detached, unless it was started before; reads
             {"job": {...}, "environment": {...}} from stdin, and writes the first to job.json
    run      be the supervisor: for a machine that exists for this run alone
    follow   print status and growing files as they change, until the supervisor ends or stdin closes
    list     print every file of the run directory with its size and SHA-256
    tar      write the files that stdin names to stdout
    stop     end the run, and wait until no process of it is left
    clean    remove JOB
    status   print the status

Answers are lines of JSON behind "@ftkit ": a login shell may print lines of its own.
"""

import base64
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import time

MARK = "@ftkit "  # before each line of an answer
VARIABLE = "FTKIT_LAUNCHED"  # every process of a run has it, with the job's token as its value
GROWING = ("log.jsonl", "predictions.journal", "losses.journal")
SCRATCH = ".work"
OWN = os.path.join(SCRATCH, "launcher")  # what the local side keeps there stays there
_RESERVE = 65536  # bytes that are freed when the disk is full, so that the status can still be written
_CHUNK = 1 << 18  # bytes of a file in one line
_POLL = 0.3  # seconds
_ALIVE = 5.0  # seconds of silence after which `follow` prints a sign of life
_TO_END = 20.0  # seconds that the run has to end after SIGINT
_TAIL = 4000  # bytes of a log that are shown
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Failure(Exception):
    """What ended the job before the run: `why` is a word for programs."""

    def __init__(self, why, message):
        super().__init__(message)
        self.why = why


def say(**values):
    """Print one line of an answer."""
    sys.stdout.write(MARK + json.dumps(values) + "\n")
    sys.stdout.flush()


# ---------------------------------------------------------------- the job's folder


class Job:
    def __init__(self, folder):
        self.folder = os.path.abspath(os.path.expanduser(folder))
        self._lock = None

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def spec(self):
        with open(self.path("job.json"), encoding="utf-8") as file:
            return json.load(file)

    def run_directory(self):
        return self.path("work", self.spec()["run"])

    def status(self):
        """Return what the supervisor has written; {} before it began."""
        try:
            with open(self.path("status.json"), encoding="utf-8") as file:
                return json.load(file)
        except (OSError, ValueError):
            return {}

    def write(self, **values):
        """Merge values into status.json, whole or not at all; where the disk is full, the reserve makes room."""
        data = json.dumps({**self.status(), **values, "time": time.time()})
        for attempt in range(2):
            try:
                with open(self.path("status.json.tmp"), "w", encoding="utf-8") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(self.path("status.json.tmp"), self.path("status.json"))
                return
            except OSError as error:
                if error.errno not in _FULL or attempt:
                    raise
                with contextlib.suppress(OSError):
                    os.unlink(self.path("reserve"))

    def take(self):
        """Take the lock of the job; return whether it was free. It is held until this process ends."""
        if self._lock is None:
            self._lock = open(self.path("lock"), "a")  # noqa: SIM115  held until this process ends
        for _ in range(20):  # `is_owned` holds it for a moment, to look
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            time.sleep(0.05)
        return False

    def is_owned(self):
        """Return whether a supervisor is alive."""
        try:
            with open(self.path("lock")) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def output(self):
        """Return the last lines that the installation and the run have printed."""
        return tail(self.path("output.log"))


def tail(path):
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - _TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(line.split("\r")[-1] for line in text.splitlines())


# ---------------------------------------------------------------- processes


def marked(token):
    """Return the ids of all processes of the run with this token, in whatever group or session they are."""
    wanted = f"{VARIABLE}={token}".encode()
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else ():
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(int(name))
    return found


def end_all(token, groups=(), seconds=5.0):
    """End every process of the run: SIGTERM first, SIGKILL to what is left after `seconds`."""
    deadline = time.monotonic() + seconds
    number = signal.SIGTERM
    while True:
        for group in groups:
            with contextlib.suppress(OSError):
                os.killpg(group, number)
        left = marked(token)
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, number)
        if not left and number == signal.SIGTERM:
            return
        if number == signal.SIGKILL and (not left or time.monotonic() > deadline + 5):
            return
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        time.sleep(0.1)


def end_with_parent():
    """Let the kernel end this process when its parent dies (Linux)."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


# ---------------------------------------------------------------- the supervisor


class Supervisor:
    """Owns one job from its start to its end."""

    def __init__(self, job, environment):
        self.job, self.spec = job, job.spec()
        self.environment = {**os.environ, **environment, VARIABLE: self.spec["token"]}
        # Packages run code of others when they are installed: they get none of the run's secrets.
        settings = {k: v for k, v in environment.items() if k.startswith("PIP_") or k.lower().endswith("_proxy")}
        self.for_pip = {**os.environ, **settings, VARIABLE: self.spec["token"]}
        self.deadline = None
        if self.spec.get("max_seconds"):
            self.deadline = time.monotonic() + self.spec["max_seconds"]

    def go(self):
        job = self.job
        job.write(phase="starting", supervisor=os.getpid(), started=time.time())
        try:
            with open(job.path("reserve"), "wb") as file:
                file.write(b"\0" * _RESERVE)
            self.unpack()
            python = self.spec.get("python") or self.environment_of_its_own()
            code = self.run(python)
            why = {0: "done", 130: "interrupted"}.get(code, "killed" if code < 0 else "failed")
            self.end(why, exit=code)
        except Failure as error:
            self.end(error.why, message=str(error))
        except OSError as error:
            self.end("full" if error.errno in _FULL else "failed", message=str(error))
        except BaseException as error:
            self.end("failed", message=f"{type(error).__name__}: {error}")
            raise

    def end(self, why, **values):
        end_all(self.spec["token"])
        asked = self.job.status().get("stopping")
        if asked and why != "done":
            why = asked
        self.job.write(phase="ended", why=why, ended=time.time(), output=self.job.output(), **values)

    def unpack(self):
        """Unpack the bundle; what is unpacked already is complete, since it gets its name at the end."""
        wanted = self.spec["bundle"]
        target, bundle = self.job.path("work"), self.job.path(wanted["name"])
        if os.path.isdir(target):
            return
        if os.path.getsize(bundle) != wanted["size"] or sha256(bundle) != wanted["sha256"]:
            raise Failure("upload", "the upload is not complete")
        shutil.rmtree(target + ".new", ignore_errors=True)
        with tarfile.open(bundle) as tar:
            options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            tar.extractall(target + ".new", **options)
        os.rename(target + ".new", target)
        os.unlink(bundle)

    def environment_of_its_own(self):
        """Return the Python of the environment with these requirements; it is made where there is none.

        Runs with the same requirements share it; a lock keeps two of them from making it at once.
        """
        venv = os.path.join(os.path.expanduser(self.spec["venvs"]), self.spec["venv"])
        python, ready = os.path.join(venv, "bin", "python"), os.path.join(venv, "ready")
        os.makedirs(os.path.dirname(venv), exist_ok=True)
        with open(venv + ".lock", "a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self.job.write(phase="waiting")
                    self.check_asked()
                    time.sleep(_POLL)
            if os.path.exists(ready):
                os.utime(ready)
                return python
            shutil.rmtree(venv, ignore_errors=True)
            self.job.write(phase="installing")
            done = self.command([sys.executable, "-m", "venv", venv], environment=self.for_pip)
            if done:
                hint = "; on Debian and Ubuntu: apt install python3-venv" if "ensurepip" in self.job.output() else ""
                raise Failure("venv", f"{sys.executable} cannot make a virtual environment{hint}")
            install = [
                python,
                "-m",
                "pip",
                "install",
                "--disable-pip-version-check",
                "--no-input",
                "--progress-bar=off",
            ]
            sources = self.job.path("work", "sources")
            line = [*install, "-c", "constraints.txt", *self.spec["requirements"]]
            done = self.command(line, sources, self.for_pip)
            if done:
                full = "No space left on device" in self.job.output()
                if full:
                    shutil.rmtree(venv, ignore_errors=True)
                raise Failure("full" if full else "pip", "pip could not install the packages")
            with open(ready, "w") as file:
                json.dump(self.spec["requirements"], file)
            return python

    def run(self, python):
        """Run ftkit on the run directory to its end; return its exit status."""
        self.job.write(phase="running", ran=True)
        directory = self.job.run_directory()
        line = [python, "-m", "ftkit", "run", "--resume", directory, "--on", "here"]
        return self.command(line, cwd=directory)

    def command(self, line, cwd=None, environment=None):
        """Run a command with its output in output.log; return its exit status. Ends it where that is asked for."""
        with open(self.job.path("output.log"), "ab") as log:
            process = subprocess.Popen(
                line,
                cwd=cwd or self.job.folder,
                env=environment or self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self.job.write(group=process.pid)
        asked_at = None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(_POLL)
            if asked_at is None and self.asked():
                asked_at = time.monotonic()
                process.send_signal(signal.SIGINT)
            elif asked_at is not None and time.monotonic() - asked_at > _TO_END:
                end_all(self.spec["token"], [process.pid])

    def asked(self):
        """Return whether the run is to end: on request, or since its time is over."""
        if os.path.exists(self.job.path("stop")):
            self.job.write(stopping="cancelled")
            return True
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.job.write(stopping="deadline")
            return True
        return False

    def check_asked(self):
        if self.asked():
            raise Failure("cancelled", "ended on request")


def start(job):
    """Start the supervisor, detached from this process; a job is started once."""
    given = json.loads(sys.stdin.read() or "{}")
    if job.status() or not job.take():
        return say(status=job.status(), started=False)
    with open(job.path("job.json"), "w", encoding="utf-8") as file:
        json.dump(given["job"], file)
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.close(reading)
        null = os.open(os.devnull, os.O_RDWR)
        log = os.open(job.path("output.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        supervise(job, given.get("environment", {}), lambda: os.close(writing))
        os._exit(0)
    os.close(writing)
    os.read(reading, 1)  # ends when the supervisor has written its first status
    say(status=job.status(), started=True)


def supervise(job, environment, begun=lambda: None):
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL if number != signal.SIGHUP else signal.SIG_IGN)
    try:
        job.write(phase="starting")
    finally:
        begun()
    Supervisor(job, environment).go()


# ---------------------------------------------------------------- looking at it


def follow(job):
    """Print what changes until the job ends. Ends when stdin closes, as it does when the other side is gone."""
    given = json.loads(sys.stdin.readline() or "{}")
    offsets = dict(given.get("offsets", {}))
    shown, last = None, time.monotonic()
    root = job.run_directory()
    while True:
        owned = job.is_owned()  # before looking: what was written until then is seen
        status = job.status()
        state = {key: status.get(key) for key in ("phase", "why")}
        if state != shown:
            shown, last = state, time.monotonic()
            say(status=status)
        if grown(root, offsets):
            last = time.monotonic()
        if not owned:
            return say(end=final(job))
        if time.monotonic() - last > _ALIVE:
            last = time.monotonic()
            say(alive=time.time())
        if select.select([0], [], [], _POLL)[0] and not os.read(0, 4096):
            return None


def grown(root, offsets):
    """Print what growing files hold beyond the offsets; return whether there was anything."""
    found = False
    for folder in sorted(os.listdir(root)) if os.path.isdir(root) else ():
        for name in GROWING:
            path = f"{folder}/{name}"
            begin = offsets.get(path, 0)
            try:
                with open(os.path.join(root, path), "rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    if size < begin:  # it was cut, or is another file: from its beginning
                        begin = 0
                    file.seek(begin)
                    while data := file.read(_CHUNK):
                        say(file=path, offset=begin, data=base64.b64encode(data).decode())
                        begin += len(data)
                        found = True
                offsets[path] = begin
            except OSError:
                continue
    return found


def final(job):
    """Return the status of a job without a supervisor; where that was killed, end what it has left."""
    status = job.status()
    if status and status.get("phase") != "ended":
        end_all(job.spec()["token"], [g for g in [status.get("group")] if g])
        status = {**status, "phase": "ended", "why": "killed", "output": job.output()}
    return status


def listing(job):
    """Print each file of the run directory, those of its scratch folder too."""
    root = job.run_directory()
    files = {}
    for parent, folders, names in os.walk(root):
        here = os.path.relpath(parent, root)
        folders[:] = [f for f in folders if not f.startswith(".") or os.path.normpath(os.path.join(here, f)) == SCRATCH]
        folders[:] = [f for f in folders if os.path.normpath(os.path.join(here, f)) != OWN]
        for name in names:
            path = os.path.join(parent, name)
            if not name.startswith(".") and os.path.isfile(path) and not os.path.islink(path):
                files[os.path.relpath(path, root)] = {"size": os.path.getsize(path), "sha256": sha256(path)}
    say(files=files)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tar(job):
    """Write files of the run directory to stdout: a line that says so, then the archive."""
    wanted = json.loads(sys.stdin.read())
    say(tar=len(wanted))
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for path in wanted:
            archive.add(os.path.join(job.run_directory(), path), path, recursive=False)
    sys.stdout.buffer.flush()


def stop(job):
    """End the run and wait until none of its processes is left."""
    if job.is_owned():
        with open(job.path("stop"), "w"):
            pass
    deadline = time.monotonic() + 2 * _TO_END
    while job.is_owned() and time.monotonic() < deadline:
        time.sleep(0.1)
    if job.is_owned():
        with contextlib.suppress(OSError, KeyError):
            os.kill(job.status()["supervisor"], signal.SIGKILL)
        time.sleep(_POLL)
    say(status=final(job))


def clean(job):
    """Remove the job's folder, and what is left of its processes."""
    if job.is_owned():
        return say(error="it is still running")
    with contextlib.suppress(OSError):
        end_all(job.spec()["token"])
    shutil.rmtree(job.folder, ignore_errors=True)
    for folder in (os.path.dirname(job.folder),):  # an empty folder of jobs
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    say(removed=not os.path.exists(job.folder))


def run(job):
    if job.status().get("phase") == "ended" or not job.take():
        return say(status=job.status(), started=False)
    supervise(job, {})
    say(status=job.status())


def main():
    verb, folder = sys.argv[1:3]
    job = Job(folder)
    if verb == "status":
        owned = job.is_owned()
        say(status=job.status(), owned=owned, exists=os.path.isdir(job.folder))
    else:
        verbs = {
            "start": start,
            "run": run,
            "follow": follow,
            "list": listing,
            "tar": tar,
            "stop": stop,
            "clean": clean,
        }
        verbs[verb](job)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
