"""Several hosts on one machine: namespaces for network, names, mounts and processes, joined by a bridge.

The bridge lies in a network namespace of its own, so the machine's network is left as it is, and everything
is gone with the processes that hold it. Hosts share the file system, as the nodes of a cluster with NFS do;
/run, /dev/shm, /etc/hosts and the settings of ssh are each host's own.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

FIRST_PROCESS = Path(__file__).with_name("first_process.py")
SUBNET = "10.0.0."
UP_WITHIN_S = 30.0

SSHD_CONFIG = """\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
MaxStartups 100
"""
SSH_CONFIG = """\
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
"""


def _sshd() -> str | None:
    return shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin"]))


@functools.cache
def why_no_hosts() -> str | None:
    """Why hosts cannot be made here; None when they can. Makes two and lets one reach the other."""
    if os.geteuid() != 0:
        return "making hosts needs root"
    for program in ("unshare", "nsenter", "ip", "mount", "hostname"):
        if shutil.which(program) is None:
            return f"making hosts needs the program {program} (packages util-linux, iproute2, hostname)"
    try:
        with Hosts(2, ssh=False) as hosts:
            return None if _meet(hosts) else "hosts can be made here, but do not reach each other"
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return f"namespaces are not permitted here: {error}"


def _meet(hosts: Hosts) -> bool:
    """Whether a line gets from node0 to node1 by its name."""
    listen = "import socket; s = socket.create_server(('', 5000)); s.accept()[0].sendall(b'here')"
    call = "import socket; print(socket.create_connection(('node1', 5000), 5).recv(9).decode())"
    with subprocess.Popen(hosts.words(1, [sys.executable, "-c", listen], Path("/"), {})) as server:
        for _ in range(20):
            line = hosts.words(0, [sys.executable, "-c", call], Path("/"), {})
            said = subprocess.run(line, capture_output=True, text=True, check=False).stdout
            if said.strip() == "here":
                return True
            time.sleep(0.1)
        server.kill()
    return False


@functools.cache
def why_no_ssh() -> str | None:
    """Why hosts cannot be reached by ssh; None when they can."""
    lacking = [name for name in ("ssh", "ssh-keygen") if shutil.which(name) is None]
    lacking += [] if _sshd() else ["sshd"]
    if lacking:
        return f"needs {', '.join(lacking)}: apt install openssh-server"
    if reason := why_no_hosts():
        return reason
    with Hosts(2) as hosts:
        line = hosts.words(0, ["ssh", "-o", "ConnectTimeout=10", "node1", "hostname"], Path("/"), {})
        said = subprocess.run(line, capture_output=True, text=True, check=False)
    return None if said.stdout.strip() == "node1" else f"ssh to a host fails: {said.stderr.strip()}"


def why_no_pdsh() -> str | None:
    """Why the deepspeed launcher cannot start hosts by pdsh; None when it can."""
    return why_no_ssh() or (None if shutil.which("pdsh") else "needs pdsh: apt install pdsh")


def _namespaced(*flags: str, program: Sequence[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start `program` in namespaces of its own; the process to end, and the id of the program itself."""
    holder = subprocess.Popen(
        ["unshare", *flags, "--fork", "--kill-child", *program], stdin=subprocess.DEVNULL
    )
    deadline = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < deadline and holder.poll() is None:
        children = psutil.Process(holder.pid).children()
        if children:
            return holder, children[0].pid
        time.sleep(0.01)
    raise RuntimeError(f"unshare ended with code {holder.poll()}")


@dataclass
class Hosts:
    """`count` hosts named node0, node1, ...; a context manager. `folder` holds keys, settings and logs."""

    count: int
    ssh: bool = True
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="roma_ds_hosts_")))
    _bridge: subprocess.Popen[bytes] | None = None
    _running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    _pids: dict[int, int] = field(default_factory=dict)

    def __enter__(self) -> Hosts:
        try:
            self._write_files()
            self._bridge, self._switch = _namespaced("--net", program=["sleep", "infinity"])
            self._in_switch("link", "add", "bridge0", "type", "bridge")
            self._in_switch("link", "set", "bridge0", "up")
            for number in range(self.count):
                self.start(number)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def name(self, number: int) -> str:
        return f"node{number}"

    def address(self, number: int) -> str:
        return f"{SUBNET}{number + 1}"

    def _write_files(self) -> None:
        self.folder.chmod(0o755)
        lines = [f"{self.address(number)} {self.name(number)}" for number in range(self.count)]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        if self.ssh:
            for key in ("host_key", "key"):
                make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key)]
                subprocess.run(make, check=True)
            (self.folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=self.folder))
            (self.folder / "ssh_config").write_text(SSH_CONFIG.format(folder=self.folder))

    def _in_switch(self, *words: str) -> None:
        subprocess.run(["nsenter", "-t", str(self._switch), "-n", "ip", *words], check=True)

    def _forget(self, port: str) -> None:
        """Remove what is left of a host that was killed; the system does it in its own time."""
        line = ["nsenter", "-t", str(self._switch), "-n", "ip", "link", "delete", port]
        subprocess.run(line, check=False, stderr=subprocess.DEVNULL)

    def start(self, number: int) -> None:
        """Start a host that does not run."""
        name = self.name(number)
        sshd = str(_sshd()) if self.ssh else ""
        holder, pid = _namespaced(
            *("--net", "--uts", "--ipc", "--mount", "--pid", "--mount-proc"),
            program=[sys.executable, str(FIRST_PROCESS), str(self.folder), name, sshd],
        )
        self._running[number], self._pids[number] = holder, pid
        port, far = f"port{number}", f"far{number}"
        self._forget(port)
        self._in_switch("link", "add", port, "type", "veth", "peer", "name", far)
        self._in_switch("link", "set", far, "netns", str(pid), "name", "eth0")
        self._in_switch("link", "set", port, "master", "bridge0", "up")
        inside = ["nsenter", "-t", str(pid), "-n", "ip"]
        address = f"{self.address(number)}/24"
        subprocess.run([*inside, "address", "add", address, "dev", "eth0"], check=True)
        subprocess.run([*inside, "link", "set", "eth0", "up"], check=True)
        deadline = time.monotonic() + UP_WITHIN_S
        while not (self.folder / f"{name}.up").exists():
            if holder.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not start; see {self.folder}")
            time.sleep(0.02)

    def words(
        self, number: int, command: Sequence[str], folder: Path, variables: Mapping[str, str]
    ) -> list[str]:
        """`command` as it is started in `folder` on a host from this machine; `variables` are set there."""
        given = [f"{name}={value}" for name, value in variables.items()]
        enter = ["nsenter", "-t", str(self._pids[number]), "-n", "-u", "-i", "-m", "-p", f"--wd={folder}"]
        return [*enter, "env", *given, *command]

    def cut(self, number: int) -> None:
        """Take the host's link down: nothing arrives, and nobody is told."""
        self._in_switch("link", "set", f"port{number}", "down")

    def join(self, number: int) -> None:
        """Put the link up again."""
        self._in_switch("link", "set", f"port{number}", "up")

    def kill(self, number: int) -> None:
        """End every process of the host at once, as a power cut does."""
        holder = self._running.pop(number)
        holder.kill()
        holder.wait()
        (self.folder / f"{self.name(number)}.up").unlink(missing_ok=True)

    def processes(self, number: int) -> list[psutil.Process]:
        """All processes of the host."""
        mine = os.stat(f"/proc/{self._pids[number]}/ns/pid").st_ino
        found = []
        for process in psutil.process_iter():
            try:
                if os.stat(f"/proc/{process.pid}/ns/pid").st_ino == mine:
                    found.append(process)
            except OSError:
                continue
        return found

    def _end(self) -> None:
        holders = [*self._running.values(), *([self._bridge] if self._bridge else [])]
        for holder in holders:
            holder.kill()
        for holder in holders:
            holder.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
