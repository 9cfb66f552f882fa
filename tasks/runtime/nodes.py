"""What a launch over several nodes needs beyond one on a single host: its environment in a file, and a heartbeat."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from tasks.worker.leash import HEARTBEAT, WATCH_STDIN, Heartbeat

NODE_FILE = "node.json"
HEARTBEAT_FILE = "heartbeat"
"""Both in the launch's scratch folder, which all nodes mount."""
_CARRIED = ("AWS_", "HF_", "HUGGING_FACE_", "NCCL_", "GLOO_", "UCX_", "FI_", "TORCH_", "FSSPEC_", "MEDIUS_")
_CARRIED_NAMES = {
    "PYTHONPATH", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY",
}  # fmt: skip


def on_node(scratch: Path) -> list[str]:
    """The command that begins Python on a node; its arguments follow."""
    return [sys.executable, "-m", "tasks.worker.node", str(scratch / NODE_FILE)]


def write_node_file(scratch: Path, settings: Mapping[str, str]) -> None:
    """Writes what every node sets: `settings`, and of this process's environment what leads to data, hub and network.

    It may hold credentials: readable by its owner alone, and gone with the scratch folder.
    """
    carried = {
        name: value for name, value in os.environ.items() if name.startswith(_CARRIED) or name.upper() in _CARRIED_NAMES
    }
    # Standard input of a remote process is whatever ssh or srun makes of it.
    tie = {WATCH_STDIN: "0", HEARTBEAT: str(scratch / HEARTBEAT_FILE)}
    descriptor = os.open(scratch / NODE_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({**carried, **settings, **tie}, file)


def start_heartbeat(scratch: Path) -> Heartbeat:
    """The tie by which ranks on other nodes notice that this process is gone."""
    return Heartbeat(scratch / HEARTBEAT_FILE)
