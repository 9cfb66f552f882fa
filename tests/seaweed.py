"""A real S3 server for tests: SeaweedFS from its Python package, on loopback, with credentials."""

from __future__ import annotations

import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from tests.hosts import Host

ACCESS_KEY = "medius-test"
SECRET_KEY = "medius-test-secret"
BUCKET = "medius"


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago. SeaweedFS adds 10000 for gRPC, so they are taken from below 20000, and from a
    random place on: two processes of a test run that ask at the same moment would else get the same ones, and one would
    find the other's server."""
    sockets = []
    ports: list[int] = []
    candidate = random.SystemRandom().randrange(12000, 19000)
    while len(ports) < count:
        candidate += 1
        pair = []
        try:
            for port in (candidate, candidate + 10000):
                listener = socket.socket()
                pair.append(listener)
                listener.bind(("127.0.0.1", port))
        except OSError:
            for listener in pair:
                listener.close()
            continue
        sockets += pair
        ports.append(candidate)
    for listener in sockets:
        listener.close()
    return ports


class SeaweedServer:
    """One server over one folder. It can be killed and started again on the same port with the same data."""

    def __init__(self, folder: Path, host: Host | None = None) -> None:
        """`host` has it, and others reach it there; without one it is on loopback."""
        self.folder = folder
        self._host = host
        self._address = "127.0.0.1" if host is None else host.address
        self.ports = free_ports(5)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://{self._address}:{self.ports[0]}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def client_environment(self) -> dict[str, str]:
        """This process's environment, led to the server."""
        return {**os.environ, **self.environment}

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        binary = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
        self.folder.mkdir(parents=True, exist_ok=True)
        s3, master, volume, filer, administration = self.ports
        command = [
            binary, "mini", f"-dir={self.folder}", f"-ip={self._address}", f"-ip.bind={self._address}",
            f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
            f"-admin.port={administration}", "-admin.ui=false", "-webdav=false", "-master.telemetry=false",
            # Else two servers that start at the same moment meet at the same port, and one ends.
            "-s3.port.iceberg=0", "-s3.port.lance=0",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command if self._host is None else self._host.command(*command),
            env=self.client_environment,
            stdout=(self.folder / "log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"weed ended: {(self.folder / 'log').read_text()[-2000:]}")
            try:
                with nullcontext() if self._host is None else self._host.network():
                    connection = http.client.HTTPConnection(self._address, s3, timeout=2)
                    connection.request("GET", "/")
                # Without a signature the server that is ready refuses.
                if connection.getresponse().status == 403:
                    return
            except OSError:
                pass
            time.sleep(0.2)
        raise RuntimeError(f"weed did not answer in 60 s: {(self.folder / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        """kill -9, and waits for the end so that the ports are free again."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
