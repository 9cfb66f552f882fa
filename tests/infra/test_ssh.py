"""infra/ssh as the pods of infra/kubernetes/nodes.yaml have it: a user without privileges, keys that its group may
read, and a configuration that ssh finds by itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from flows.stack import CHECKOUT
from tests.hosts import Host, two_hosts
from tests.runtime.conftest import wait_for

FOLDER = CHECKOUT / "infra" / "ssh"
KEYS = "/run/keys"
AS_USER = ("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--no-new-privs", "--bounding-set=-all")


def prepare(host: Host, folder: Path) -> None:
    """Gives a host the image's user and the files of a pod, in its own view of the file system."""
    host.run("mount", "--bind", str(folder / "passwd"), "/etc/passwd")
    host.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    host.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/etc/ssh/ssh_config.d")
    host.run("cp", str(folder / "ssh_config"), "/etc/ssh/ssh_config.d/medius.conf")
    host.run("cp", "--recursive", str(folder / "keys"), KEYS)
    # As Kubernetes mounts a Secret with defaultMode 0440 and fsGroup 1000.
    host.run("chown", "--recursive", "root:1000", KEYS)
    host.run("chmod", "--recursive", "u=rX,g=rX,o=", KEYS)


def test_a_pods_user_reaches_another_pod_without_any_privilege(tmp_path: Path) -> None:
    for program, package in {"sshd": "openssh-server", "setpriv": "util-linux"}.items():
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}: apt-get install {package}")
    if not Path("/etc/ssh/ssh_config.d").is_dir():
        pytest.skip("this machine's ssh reads no /etc/ssh/ssh_config.d, which the image's does")
    keys = tmp_path / "keys"
    keys.mkdir()
    for key in ("key", "host-key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / key)], check=True)
    (keys / "known_hosts").write_text(f"medius-nodes {(keys / 'host-key.pub').read_text()}")
    (keys / "sshd_config").write_text((FOLDER / "sshd_config").read_text().replace("/etc/medius/ssh", KEYS))
    (tmp_path / "ssh_config").write_text((FOLDER / "ssh_config").read_text().replace("/etc/medius/ssh", KEYS))
    (tmp_path / "passwd").write_text(f"{Path('/etc/passwd').read_text()}medius:x:1000:1000::/tmp:/bin/sh\n")
    with two_hosts(tmp_path) as hosts:
        for name in ("a", "b"):
            prepare(hosts[name], tmp_path)
        command = [*AS_USER, str(shutil.which("sshd")), "-D", "-e", "-f", f"{KEYS}/sshd_config"]
        server = hosts["b"].popen(command, tmp_path / "sshd.log")
        try:

            def listens() -> bool:
                assert server.poll() is None, (tmp_path / "sshd.log").read_text()
                return "Server listening" in (tmp_path / "sshd.log").read_text()

            wait_for(listens, 60, "sshd")
            done = subprocess.run(
                hosts["a"].command(*AS_USER, "ssh", "b", "hostname; id -u; grep CapEff /proc/self/status"),
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            said = done.stderr + (tmp_path / "sshd.log").read_text()
            assert done.stdout.split() == ["b", "1000", "CapEff:", "0" * 16], said
        finally:
            server.kill()
            server.wait()
