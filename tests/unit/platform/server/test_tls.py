"""Both servers over TLS, renewal of the certificate while they run, and unusable files."""

import asyncio
import contextlib
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from pydantic_settings import SettingsConfigDict

from searchrl.clients.evaluator_client import EvaluatorClient
from searchrl.contracts.v1 import evaluator_pb2 as pb
from searchrl.contracts.v1 import evaluator_pb2_grpc as rpc
from searchrl.errors import ConfigurationError, ServiceError
from searchrl.platform.health import Health
from searchrl.platform.server import tls
from searchrl.platform.server.auth import KeyRing
from searchrl.platform.server.grpc_server import build_grpc_server
from searchrl.platform.server.http_app import build_http_app
from searchrl.platform.server.server_runner import run_servers
from searchrl.platform.server.tls import ServerTls
from searchrl.platform.settings import Listen, ServiceSettings

FULL_NAME = "searchrl.contracts.v1.Evaluator"
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


class ExampleSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="EXAMPLE_")


class ExampleServicer(rpc.EvaluatorServicer):
    async def ListRuns(self, request: pb.ListRunsRequest, context: object) -> pb.ListRunsResponse:
        return pb.ListRunsResponse()


def write_certificate(folder: Path, name: str) -> None:
    """Write a new self-signed certificate and replace the old one by renames, as the kubelet does."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "1",
    ]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(folder / "new.key"), "-out", str(folder / "new.crt")]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "new.key").rename(folder / "tls.key")
    (folder / "new.crt").rename(folder / "tls.crt")


@pytest.fixture
async def ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[int, int]]:
    monkeypatch.setattr(tls, "FOLLOW_SECONDS", 0.01)
    write_certificate(tmp_path, "first")
    health, keys, stop = Health(), KeyRing.from_file(None), asyncio.Event()
    registry, ready = CollectorRegistry(), tmp_path / "ready.json"
    listen = Listen(
        http_port=0, grpc_port=0, tls_certificate=tmp_path / "tls.crt", tls_private_key=tmp_path / "tls.key"
    )
    server = build_grpc_server(
        lambda server: rpc.add_EvaluatorServicer_to_server(ExampleServicer(), server),
        full_name=FULL_NAME,
        keys=keys,
        health=health,
    )
    running = asyncio.create_task(
        run_servers(
            server,
            build_http_app("example", [], keys=keys, health=health, registry=registry),
            settings=ExampleSettings(listen=listen, ready_file=ready),
            health=health,
            stop=stop,
        )
    )
    while not ready.exists():
        await asyncio.sleep(0.01)
    written = json.loads(ready.read_text())
    yield int(written["http"].rpartition(":")[2]), int(written["grpc"].rpartition(":")[2])
    stop.set()
    await running


async def list_runs(port: int) -> int:
    async with EvaluatorClient(f"localhost:{port}") as client:
        return len(await client.list_runs())


async def status(port: int, authority: Path) -> int:
    context = ssl.create_default_context(cafile=str(authority))
    async with httpx.AsyncClient(verify=context, trust_env=False) as client:
        return (await client.get(f"https://localhost:{port}/readyz")).status_code


@needs_openssl
async def test_both_servers_speak_tls_and_follow_a_renewed_certificate(
    ports: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    http_port, grpc_port = ports
    monkeypatch.setenv("SEARCHRL_TLS_AUTHORITY", str(tmp_path / "first.crt"))
    shutil.copy(tmp_path / "tls.crt", tmp_path / "first.crt")
    assert await status(http_port, tmp_path / "first.crt") == 200
    assert await list_runs(grpc_port) == 0

    write_certificate(tmp_path, "second")
    monkeypatch.setenv("SEARCHRL_TLS_AUTHORITY", str(tmp_path / "tls.crt"))
    assert await list_runs(grpc_port) == 0
    async with asyncio.timeout(10):
        while True:  # the REST server checks for changes periodically
            try:
                assert await status(http_port, tmp_path / "tls.crt") == 200
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.02)


@needs_openssl
async def test_a_renewal_that_does_not_fit_leaves_the_old_certificate(
    ports: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    http_port, grpc_port = ports
    shutil.copy(tmp_path / "tls.crt", tmp_path / "first.crt")
    monkeypatch.setenv("SEARCHRL_TLS_AUTHORITY", str(tmp_path / "first.crt"))
    (tmp_path / "tls.key").write_text("cut off")
    assert await list_runs(grpc_port) == 0
    assert await status(http_port, tmp_path / "first.crt") == 200


class WatchedContext(ssl.SSLContext):
    """Sets ``renewed`` whenever a certificate is loaded into it."""

    renewed: asyncio.Event

    def load_cert_chain(self, *files: Any, **options: Any) -> None:
        super().load_cert_chain(*files, **options)
        self.renewed.set()

    def served_certificate(self) -> bytes:
        """Return the certificate that a client gets, from a handshake in memory."""
        client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client_context.check_hostname = False
        client_context.verify_mode = ssl.CERT_NONE
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_context.wrap_bio(to_client, to_server)
        server = self.wrap_bio(to_server, to_client, server_side=True)
        for end in (client, server, client):  # hello; certificate; the client has read it
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        certificate = client.getpeercert(binary_form=True)
        assert certificate is not None
        return certificate


@needs_openssl
async def test_the_watch_keeps_the_old_pair_until_both_renewed_files_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "FOLLOW_SECONDS", 0.01)
    served, renewed = tmp_path / "served", tmp_path / "renewed"
    for folder in (served, renewed):
        folder.mkdir()
        write_certificate(folder, folder.name)
    first, second = (ssl.PEM_cert_to_DER_cert((folder / "tls.crt").read_text()) for folder in (served, renewed))
    context = WatchedContext(ssl.PROTOCOL_TLS_SERVER)
    context.renewed = asyncio.Event()
    context.load_cert_chain(served / "tls.crt", served / "tls.key")
    context.renewed.clear()
    refused = asyncio.Event()
    monkeypatch.setattr(tls.logger, "warning", lambda *_message: refused.set())
    watch = asyncio.create_task(ServerTls(served / "tls.crt", served / "tls.key").follow(context))
    await asyncio.sleep(0)  # the watch has seen the first pair
    async with asyncio.timeout(20):
        (renewed / "tls.crt").rename(served / "tls.crt")
        await refused.wait()
        assert context.served_certificate() == first
        (renewed / "tls.key").rename(served / "tls.key")
        await context.renewed.wait()
    assert context.served_certificate() == second
    watch.cancel()


@needs_openssl
async def test_a_client_without_tls_gets_no_answer(ports: tuple[int, int]) -> None:
    client = EvaluatorClient(f"localhost:{ports[1]}", timeout_seconds=2)
    with pytest.raises(ServiceError):
        await client.list_runs()
    await client.close()


def test_a_certificate_without_key_and_unreadable_files_are_refused_at_start(tmp_path: Path) -> None:
    assert ServerTls.of(None, None) is None
    with pytest.raises(ConfigurationError, match=r"both listen\.tls_certificate and"):
        ServerTls.of(tmp_path / "tls.crt", None)
    with pytest.raises(ConfigurationError, match="cannot be used: No such file"):
        ServerTls.of(tmp_path / "tls.crt", tmp_path / "tls.key")
    (tmp_path / "tls.crt").write_text("x")
    (tmp_path / "tls.key").write_text("x")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        ServerTls.of(tmp_path / "tls.crt", tmp_path / "tls.key")
