"""What the fault suite's tests share: the undisturbed run, one S3 server, one Prefect server, and the table's lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bench.harness import machine
from tests.e2e.micro_run import MicroRun, undisturbed_run
from tests.faults import table
from tests.faults.prefect_server import PrefectServer
from tests.faults.s3_proxy import Fault, S3Proxy
from tests.faults.scene import Scene
from tests.faults.victim import end_all
from tests.seaweed import BUCKET, SeaweedServer

Tell = Callable[[str], None]
ScenesOf = Callable[..., Scene]
ProxyOf = Callable[[Fault], S3Proxy]

_FOLDER = Path(__file__).parent
_DECLARED = pytest.StashKey[dict[str, tuple[str, str]]]()
_FILES = pytest.StashKey[set[str]]()
_ENDED = pytest.StashKey[dict[str, table.Line]]()


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory, prefect: PrefectServer) -> MicroRun:
    """The undisturbed run: on local disk, at the Prefect server that all runs of the suite share."""
    return undisturbed_run(tmp_path_factory.mktemp("calm"), prefect.environment)


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """The Prefect server of all runs; a test that kills it starts it again."""
    server = PrefectServer(tmp_path_factory.mktemp("prefect"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """The S3 server of all runs, with a bucket, to which this process's environment leads; likewise."""
    server = SeaweedServer(tmp_path_factory.mktemp("seaweed"))
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        yield server
    server.kill()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing runs any more after the test, however that ends."""
    yield tmp_path
    end_all(tmp_path)


@pytest.fixture
def scenes(place: Path, prefect: PrefectServer, seaweed: SeaweedServer, request: pytest.FixtureRequest) -> ScenesOf:
    """scenes(proxy, *settings) gives a store of this test alone; its runs speak to S3 through the proxy, if there is
    one. A test with several of them names each by `part`.
    """
    name = "".join(char if char.isalnum() else "-" for char in request.node.name)

    def make(proxy: S3Proxy | None = None, *settings: str, part: str = "run") -> Scene:
        variables = {**prefect.environment, **seaweed.environment}
        if proxy is not None:
            variables["AWS_ENDPOINT_URL"] = proxy.endpoint
        return Scene(place / part, f"s3://{BUCKET}/{name}/{part}", variables, settings)

    return make


@pytest.fixture
def proxies(seaweed: SeaweedServer) -> Iterator[ProxyOf]:
    """proxies(fault) stands before the S3 server until the test ends."""
    made: list[S3Proxy] = []

    def make(fault: Fault) -> S3Proxy:
        made.append(S3Proxy(seaweed.endpoint, fault))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """tell("what was seen") puts it into the table."""
    return lambda seen: record_property("seen", seen)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    declared: dict[str, tuple[str, str]] = {}
    for item in items:
        marker = item.get_closest_marker("faults")
        if marker is not None:
            fault, promise = marker.args
            declared[item.nodeid] = (fault, promise)
    config.stash[_DECLARED] = declared
    config.stash[_FILES] = {item.path.name for item in items if item.path.parent == _FOLDER}
    config.stash[_ENDED] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    declared = item.config.stash[_DECLARED].get(item.nodeid)
    # A failure of a fixture before or after the test is one of the test.
    if declared is not None and (report.when == "call" or report.outcome != "passed"):
        seen = "; ".join(str(value) for name, value in report.user_properties if name == "seen")
        if report.skipped:
            seen = report.longrepr[2].removeprefix("Skipped: ")
        item.config.stash[_ENDED][item.nodeid] = table.Line(*declared, report.outcome, seen)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    stash = session.config.stash
    declared, ended = stash.get(_DECLARED, {}), stash.get(_ENDED, {})
    suite = [path.name for path in _FOLDER.glob("test_*.py") if "pytest.mark.faults(" in path.read_text()]
    if table.is_whole(declared, ended, stash.get(_FILES, set()), suite):
        table.write((ended[name] for name in declared), f"{os.cpu_count()} CPUs, {machine()}.")
