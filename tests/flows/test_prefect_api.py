"""What a Prefect server is sent: by the environment alone, and by Prefect's own settings."""

from __future__ import annotations

import ipaddress
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flows.prefect_api import PrefectApi
from tasks.artifacts.errors import MediusError

KEY = "pnu_0123456789abcdef"


@dataclass
class CloudServer:
    """One that answers requests at `/api/flow_runs/count` with the key, and no others."""

    url: str
    seen: list[dict[str, str]]
    """Headers of each request that was answered."""


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[CloudServer]:
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            allowed = self.headers["Authorization"] == f"Bearer {KEY}"
            code = 404 if self.path != "/api/flow_runs/count" else 200 if allowed else 401
            if code == 200:
                seen.append(dict(self.headers))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"0")

        def log_message(self, *_arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        scheme = "http" if certificate is None else "https"
        yield CloudServer(f"{scheme}://127.0.0.1:{server.server_port}/api", seen)
        server.shutdown()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody but itself vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


def by_settings(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A request to the server of Prefect's settings, in a process that has only these of Prefect's variables."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-c", "from flows.prefect_settings import configured_server; configured_server().require()"],
        env={**others, "PREFECT_HOME": str(folder), **environment},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_key_is_sent_as_prefect_cloud_wants_it_and_a_slash_at_the_end_changes_nothing() -> None:
    with serving() as server:
        for url in (server.url, f"{server.url}/"):
            PrefectApi.of({"PREFECT_API_URL": url, "PREFECT_API_KEY": KEY}).require()
        assert len(server.seen) == 2
        with pytest.raises(MediusError, match="refuses the password or key"):
            PrefectApi.of({"PREFECT_API_URL": server.url, "PREFECT_API_KEY": "pnu_other"}).require()


def test_prefects_profile_has_the_key_where_the_environment_has_the_url(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text(f'active = "cloud"\n[profiles.cloud]\nPREFECT_API_KEY = "{KEY}"\n')
    headers = {"X-Gate": "of ours"}
    with serving() as server:
        said = by_settings(
            tmp_path, PREFECT_API_URL=f"{server.url}/", PREFECT_CLIENT_CUSTOM_HEADERS=json.dumps(headers)
        )
        assert said.returncode == 0, said.stderr
        [seen] = server.seen
        assert seen["X-Gate"] == "of ours"


def test_headers_and_certificates_are_those_of_prefects_variables(tmp_path: Path, certificate: Path) -> None:
    with serving(certificate) as server:
        own = {
            "PREFECT_API_URL": server.url,
            "PREFECT_API_KEY": KEY,
            "PREFECT_CLIENT_CUSTOM_HEADERS": '{"X-Gate": "1"}',
        }
        with pytest.raises(MediusError, match="CERTIFICATE_VERIFY_FAILED"):
            PrefectApi.of(own).require()
        for variables in (
            {"PREFECT_API_SSL_CERT_FILE": str(certificate)},
            {"PREFECT_API_TLS_INSECURE_SKIP_VERIFY": "true"},
        ):
            PrefectApi.of({**own, **variables}).require()
            said = by_settings(tmp_path, **own, **variables)
            assert said.returncode == 0, said.stderr
        assert [seen["X-Gate"] for seen in server.seen] == ["1"] * 4
