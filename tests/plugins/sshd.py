"""A real sshd on loopback, for the tests: its own host key, settings and client settings in one folder, as this user."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

_CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/key.pub
AuthenticationMethods publickey
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PrintMotd no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
LogLevel VERBOSE
"""
_CLIENT = """
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""


def program() -> str:
    """Return sshd's path: it must be started by it."""
    found = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    assert found, "sshd is not installed"
    return found


class Sshd:
    """The server, and what a client needs to reach it."""

    def __init__(self, folder: Path, **variables: str) -> None:
        """`variables` are those of every command that a client runs."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("host_key", "key"):
            self.make_key(name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = {"port": self.port, "folder": folder}
        given = "".join(f" {name}={value}" for name, value in variables.items())
        text = _CONFIG.format(**settings) + (f"SetEnv{given}\n" if given else "")
        (folder / "sshd_config").write_text(text)
        (folder / "ssh_config").write_text(_CLIENT.format(**settings))
        self.know()
        self.start()

    def make_key(self, name: str) -> None:
        for path in (self.folder / name, self.folder / f"{name}.pub"):
            path.unlink(missing_ok=True)
        line = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
        subprocess.run(line, check=True)

    def know(self) -> None:
        """Let the client know the host key."""
        kind, key, *_ = (self.folder / "host_key.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def start(self) -> None:
        if os.geteuid() == 0:  # root's sshd wants the folder for what runs without rights
            Path("/run/sshd").mkdir(exist_ok=True)
        line = [program(), "-D", "-e", "-f", str(self.folder / "sshd_config")]
        self._log = open(self.folder / "sshd.log", "ab")  # noqa: SIM115  closed by `stop`
        self.process = subprocess.Popen(line, stderr=self._log, start_new_session=True)
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "sshd.log").read_text()
                assert time.monotonic() < deadline, "sshd does not answer"
                time.sleep(0.05)

    def stop(self) -> None:
        """End the server; connections that exist stay."""
        self.process.terminate()
        self.process.wait(20)
        self._log.close()

    def where(self, folder: Path) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{folder}"

    @property
    def command(self) -> str:
        """Return what FTKIT_SSH_COMMAND has to be."""
        return f"ssh -F {self.folder}/ssh_config"

    def connections(self) -> list[int]:
        """Return the processes that serve connections."""
        own = self.process.pid  # it waits for connections, under a name that begins alike
        found = processes().items()
        return [pid for pid, line in found if line.startswith("sshd: ") and pid != own and self._is_mine(pid)]

    def _is_mine(self, pid: int) -> bool:
        while pid > 1:
            if pid == self.process.pid:
                return True
            try:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                return False
        return False

    def cut(self) -> int:
        """Kill what serves the connections; return how many there were."""
        found = self.connections()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)


def processes() -> dict[int, str]:
    """Return the command lines of all processes."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
    return found


def left_over(*folders: Path) -> dict[int, str]:
    """Return the processes whose command line names one of the folders, and those of any launched run in them."""
    found = {}
    for pid, line in processes().items():
        launched = ""
        with contextlib.suppress(OSError):
            if b"FTKIT_LAUNCHED=" in Path(f"/proc/{pid}/environ").read_bytes():
                launched = os.readlink(f"/proc/{pid}/cwd")
        if pid != os.getpid() and any(str(folder) in text for folder in folders for text in (line, launched)):
            found[pid] = line
    return found
