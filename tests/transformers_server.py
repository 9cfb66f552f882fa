"""`transformers serve` on 127.0.0.1 with one model folder: a real OpenAI-compatible server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

START_SECONDS = 600
"""torch and the weights take 15 s on a free core, minutes on one that is shared by twenty processes."""


class TransformersServer:
    """Serves `folder` under the folder's own name; `log` gets what the server prints."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log = folder, log
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])

    @property
    def model(self) -> str:
        return self.folder.name

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> TransformersServer:
        command = [str(Path(sys.executable).parent / "transformers"), "serve", self.model, "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--device", "cpu", "--dtype", "float32"]
        settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(self.log.parent / "huggingface"), "DO_NOT_TRACK": "1"}
        # The server reads a folder by a relative name, so that the model's name is no path of this machine.
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder.parent,
                env={**os.environ, **settings, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_well():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"transformers serve did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_well(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False
