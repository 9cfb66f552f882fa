"""Hosts of their own for tests: processes that see another network, host name and /etc/hosts than this machine's.

Each host is a network, UTS and mount namespace, held by a process that ends when the test does. All hang on one switch
in a namespace of its own, so nothing is added to this machine's network and nothing leaves it. The file system is one,
as on nodes that mount the same.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

_NETWORK = "10.99.7"
_CLONE_NEWNET = 0x40000000
_HELD = r"""
set -eu
hostname "$1"
mount --bind "$2" /etc/hosts
ip link set lo up
echo ready
exec cat
"""


class Host:
    """A name and an address; `command(…)` is what runs there."""

    def __init__(self, name: str, number: int, hosts_file: Path) -> None:
        self.name = name
        self.address = f"{_NETWORK}.{number}"
        self._holder = subprocess.Popen(
            [
                "unshare", "--net", "--uts", "--mount", "--propagation", "private",
                "sh", "-c", _HELD, "sh", name, str(hosts_file),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise OSError(self._holder.communicate()[1].strip())

    @property
    def process(self) -> int:
        """The process that holds its namespaces."""
        return self._holder.pid

    def command(self, *words: str) -> list[str]:
        """The command line that runs these words on this host, in the same folder."""
        return ["nsenter", f"--target={self.process}", "--net", "--uts", "--mount", f"--wd={os.getcwd()}", *words]

    def run(self, *words: str) -> str:
        """Runs a command to its end there; returns what it printed."""
        return subprocess.run(self.command(*words), check=True, capture_output=True, text=True).stdout

    def popen(
        self, words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a command there, in a process group of its own, with this process's environment and `environment`."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(*words),
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @contextmanager
    def network(self) -> Iterator[None]:
        """Sockets that this thread opens in the block are this host's; threads that it starts there stay with it."""
        with open("/proc/thread-self/ns/net") as own, open(f"/proc/{self.process}/ns/net") as there:
            _set_network(there.fileno())
            try:
                yield
            finally:
                _set_network(own.fileno())

    def processes(self) -> list[int]:
        """What runs there, but for the process that holds its namespaces."""
        own = os.readlink(f"/proc/{self.process}/ns/net")
        assert own != os.readlink("/proc/self/ns/net")
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.readlink(folder / "ns" / "net") == own and int(folder.name) != self.process:
                    found.append(int(folder.name))
        return found

    def end(self) -> None:
        """Kills what still runs there; its network goes with its last process."""
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait()


def _set_network(descriptor: int) -> None:
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Hosts:
    """`with Hosts(folder, ["a", "b"]) as hosts:` then `hosts["a"]`; `hosts.switch` is a host that all reach."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._names = names
        self._all: list[Host] = []

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self._all if host.name == name)

    @property
    def switch(self) -> Host:
        return self._all[0]

    def __enter__(self) -> Self:
        numbered = list(enumerate(["switch", *self._names], start=1))
        file = self._folder / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{_NETWORK}.{number} {name}" for number, name in numbered)]
        file.write_text("\n".join(lines) + "\n")
        try:
            for number, name in numbered:
                self._all.append(Host(name, number, file))
            self._connect()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _connect(self) -> None:
        switch = self.switch
        switch.run("ip", "link", "add", "bridge", "type", "bridge")
        switch.run("ip", "addr", "add", f"{switch.address}/24", "dev", "bridge")
        switch.run("ip", "link", "set", "bridge", "up")
        for host in self._all[1:]:
            port = f"to-{host.name}"
            switch.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.process))
            switch.run("ip", "link", "set", port, "master", "bridge", "up")
            host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")

    def cut_off(self, name: str) -> None:
        """Pulls the host's cable at the switch: what it sends and awaits is lost without a word."""
        self.switch.run("ip", "link", "set", f"to-{name}", "down")

    def reconnect(self, name: str) -> None:
        """Puts it back."""
        self.switch.run("ip", "link", "set", f"to-{name}", "up")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in reversed(self._all):
            host.end()


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Hosts `a` and `b`; skips the test where namespaces cannot be made."""
    try:
        hosts = Hosts(folder, ["a", "b"]).__enter__()
    except FileNotFoundError as error:
        pytest.skip(f"hosts as network namespaces need util-linux and iproute2: {error}")
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        pytest.skip(f"network namespaces cannot be made here (they need root): {said}")
    try:
        yield hosts
    finally:
        hosts.__exit__(None, None, None)
