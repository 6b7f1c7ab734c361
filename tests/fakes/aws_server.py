"""Moto's implementation of S3, STS and IAM behind HTTPS; it verifies the signature of every request."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")

BUCKET = "bucket"
ROLE = "arn:aws:iam::123456789012:role/reader"
_ALLOW_ALL = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}'
_TRUST = '{"Version": "2012-10-17", "Statement": []}'


@dataclass
class AwsServer:
    """The address of the server, a key that may read the bucket, and the requests that arrived.

    Attributes:
        certificate: file with the certificate of the server, which no system trusts.
        seen: path, query, authorization and body of each request.
    """

    url: str
    certificate: Path
    key: Path
    access_key: str = ""
    secret_key: str = ""
    seen: list[str] = field(default_factory=list)


@contextmanager
def serve_aws(folder: Path, objects: dict[str, bytes]) -> Iterator[AwsServer]:
    """Serve on a free port of the loopback; ``objects`` lie in the bucket, which the key and the role may read."""
    from moto import settings
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    aws = AwsServer("", *_write_certificate(folder))
    application = DomainDispatcherApplication(create_backend_app)

    def record(environ: dict[str, Any], start_response: Any) -> Any:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = BytesIO(body)
        query = environ.get("QUERY_STRING", "")
        aws.seen.append(" ".join([environ["PATH_INFO"], query, environ.get("HTTP_AUTHORIZATION", ""), body.decode()]))
        # As on AWS every request is signed, but the one that exchanges a web identity for a key.
        is_exchange = "Action=AssumeRoleWithWebIdentity" in query
        if is_exchange:
            # AWS takes the parameters in the address or in the body; moto finds the service by those in the body.
            form = {"QUERY_STRING": "", "CONTENT_TYPE": "application/x-www-form-urlencoded"}
            environ.update(form, CONTENT_LENGTH=str(len(query)))
            environ["wsgi.input"] = BytesIO(query.encode())
        is_open = not aws.access_key or is_exchange
        settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf") if is_open else 0
        return application(environ, start_response)

    with _serve(make_server("127.0.0.1", 0, record, threaded=True)) as port:
        _fill(aws, f"http://127.0.0.1:{port}", objects)
    paths = (str(aws.certificate), str(aws.key))
    with _serve(make_server("127.0.0.1", 0, record, threaded=True, ssl_context=paths)) as port:
        aws.url = f"https://localhost:{port}"
        yield aws
    settings.INITIAL_NO_AUTH_ACTION_COUNT = float("inf")


@contextmanager
def _serve(server: Any) -> Iterator[int]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.port
    finally:
        server.shutdown()
        server.server_close()


def _write_certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "tls.crt", folder / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days"]
    command += ["1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    # Of a server, not of an authority: rustls refuses an authority's certificate from a server.
    command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


def _fill(aws: AwsServer, url: str, objects: dict[str, bytes]) -> None:
    import boto3

    def client(service: str) -> Any:
        keys = {"aws_access_key_id": "setup", "aws_secret_access_key": "setup", "region_name": "us-east-1"}
        return boto3.client(service, endpoint_url=url, **keys)

    s3, iam = client("s3"), client("iam")
    s3.create_bucket(Bucket=BUCKET)
    for name, content in objects.items():
        s3.put_object(Bucket=BUCKET, Key=name, Body=content)
    iam.create_user(UserName="reader")
    iam.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=_ALLOW_ALL)
    iam.create_role(RoleName="reader", AssumeRolePolicyDocument=_TRUST)
    iam.put_role_policy(RoleName="reader", PolicyName="all", PolicyDocument=_ALLOW_ALL)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    aws.secret_key = key["SecretAccessKey"]
    aws.access_key = key["AccessKeyId"]  # from now on moto verifies
    aws.seen.clear()
