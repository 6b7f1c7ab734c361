"""Serves TLS on both servers with a certificate that may be renewed while they run."""

import asyncio
import contextlib
import logging
import os
import ssl
from pathlib import Path

import grpc

from searchrl.errors import ConfigurationError

logger = logging.getLogger(__name__)

AUTHORITY_VARIABLE = "SEARCHRL_TLS_AUTHORITY"
FOLLOW_SECONDS = 2.0  # between looks at the files; larger: a renewed certificate is served later


class ServerTls:
    """A certificate and its key in PEM files, read again when they change.

    A renewal that cannot be read or whose key does not match is ignored with a warning: the old certificate stays in
    use. The two servers follow a renewal in different ways: gRPC asks for the newest certificate with every new
    connection; uvicorn's SSL context is updated by ``follow``, a task of the event loop.
    """

    def __init__(self, certificate: Path, private_key: Path) -> None:
        self._files = (certificate, private_key)
        self._check()
        self._grpc_stamp = self._stamp()
        self._grpc_configuration = self._read_for_grpc()

    @classmethod
    def of(cls, certificate: Path | None, private_key: Path | None) -> "ServerTls | None":
        """Return None, that is no TLS, if neither file is named.

        Raises:
            ConfigurationError: one file is named without the other, or the pair cannot be used.
        """
        if certificate is None and private_key is None:
            return None
        if certificate is None or private_key is None:
            raise ConfigurationError("TLS needs both listen.tls_certificate and listen.tls_private_key")
        return cls(certificate, private_key)

    def uvicorn_options(self) -> dict[str, str]:
        certificate, private_key = self._files
        return {"ssl_certfile": str(certificate), "ssl_keyfile": str(private_key)}

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Credentials that check the files with every new connection."""
        return grpc.dynamic_ssl_server_credentials(self._grpc_configuration, self._newest_for_grpc)

    async def follow(self, context: ssl.SSLContext) -> None:
        """Load a renewed certificate into ``context`` for later connections; runs until cancelled."""
        known = self._stamp()
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            # The stamp is kept even if the pair turns out to be unusable: it is logged once, and looked at again when
            # it changes.
            stamp = self._stamp()
            if stamp == known:
                continue
            known = stamp
            with contextlib.suppress(ConfigurationError, OSError):  # a file may change between check and load
                # In a context of its own first: ``load_cert_chain`` replaces the certificate before it compares the
                # key, so a pair that does not match would leave the live context without a usable one.
                self._check()
                context.load_cert_chain(*self._files)
                logger.info("the TLS certificate was renewed")

    def _newest_for_grpc(self) -> grpc.ServerCertificateConfiguration:
        """Called by gRPC for each new connection, not necessarily in the event loop's thread."""
        # Two calls of ``stat`` for each new connection, some microseconds beside a handshake of milliseconds.
        stamp = self._stamp()
        if stamp != self._grpc_stamp:
            self._grpc_stamp = stamp
            with contextlib.suppress(ConfigurationError, OSError):
                self._check()
                self._grpc_configuration = self._read_for_grpc()
        return self._grpc_configuration

    def _read_for_grpc(self) -> grpc.ServerCertificateConfiguration:
        certificate, private_key = self._files
        return grpc.ssl_server_certificate_configuration([(private_key.read_bytes(), certificate.read_bytes())])

    def _check(self) -> None:
        certificate, private_key = self._files
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, private_key)
        except OSError as error:  # ssl.SSLError among them
            logger.warning("the TLS certificate %s cannot be used", certificate)
            reason = error.strerror or error
            raise ConfigurationError(
                f"the TLS certificate {certificate} and key {private_key} cannot be used: {reason}"
            ) from error

    def _stamp(self) -> tuple[tuple[int, int], ...] | None:
        """Modification times and sizes of both files; None while one of them is missing."""
        try:
            states = [path.stat() for path in self._files]
        except OSError:
            return None
        return tuple((state.st_mtime_ns, state.st_size) for state in states)


def client_authority() -> Path | None:
    """Return the authority that clients of our services trust, from ``SEARCHRL_TLS_AUTHORITY``; None: no TLS."""
    named = os.environ.get(AUTHORITY_VARIABLE)
    return Path(named) if named else None
