"""Fetches a folder from S3, or from a store with the same protocol, by listing and signed GET requests."""

import hashlib
import hmac
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

import httpx

from searchrl.errors import ConfigurationError
from searchrl.storage.source import RemoteFile, check, stream, translate_connection_errors

_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()  # of the body of a GET, which is part of the signature


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key; temporary ones also have a session token."""

    access_key: str
    secret_key: str
    session_token: str = ""


class S3Source:
    """All objects below ``s3://BUCKET/PREFIX``. Without credentials requests are anonymous.

    Environment variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL_S3.
    """

    def __init__(self, uri: str, client: httpx.Client, environment: Mapping[str, str]) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not bucket or not prefix:
            raise ConfigurationError(f"{uri}: write s3://BUCKET/PATH")
        self._uri, self._prefix, self._client = uri, f"{prefix}/", client
        self._region = environment.get("AWS_REGION") or "us-east-1"
        endpoint = environment.get("AWS_ENDPOINT_URL_S3") or f"https://s3.{self._region}.amazonaws.com"
        # The bucket in the path, not in the host name: MinIO and other stores have no DNS entry for each bucket.
        self._bucket_url = f"{endpoint.rstrip('/')}/{bucket}"
        key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
        token = environment.get("AWS_SESSION_TOKEN", "")
        self._credentials = Credentials(key, secret, token) if key and secret else None

    def files(self) -> list[RemoteFile]:
        found: list[RemoteFile] = []
        token = ""
        while True:
            parameters = {"list-type": "2", "prefix": self._prefix}
            if token:
                parameters["continuation-token"] = token
            # Sorted and quoted here, because the signature covers the query in exactly this form; httpx would quote it
            # in its own.
            query = "&".join(f"{name}={quote(value, safe='')}" for name, value in sorted(parameters.items()))
            url = f"{self._bucket_url}?{query}"
            with translate_connection_errors(self._uri):
                response = self._client.get(url, headers=self._headers(url))
            check(response, self._uri)
            page = ElementTree.fromstring(response.content)  # from the configured store; no entities are used
            found += [file for row in page.iterfind("{*}Contents") if (file := self._remote_file(row))]
            # ListObjectsV2 returns at most 1000 objects at once.
            token = page.findtext("{*}NextContinuationToken") or ""
            if page.findtext("{*}IsTruncated") != "true" or not token:
                break
        # S3 lists a prefix that does not exist without an error, as an empty page.
        if not found:
            raise ConfigurationError(f"{self._uri}: nothing lies there")
        return found

    def blocks(self, file: RemoteFile) -> Iterator[bytes]:
        url = f"{self._bucket_url}/{quote(self._prefix + file.name)}"
        # Signed when the request is made, so a retry after a long outage has a current time in its signature.
        return stream(self._client, url, self._headers(url), f"{self._uri}: {file.name}")

    def _remote_file(self, row: ElementTree.Element) -> RemoteFile | None:
        name = (row.findtext("{*}Key") or "").removeprefix(self._prefix)
        if not name or name.endswith("/"):  # placeholder objects that some tools create for folders
            return None
        return RemoteFile(name, int(row.findtext("{*}Size") or 0))

    def _headers(self, url: str) -> dict[str, str]:
        if self._credentials is None:
            return {}
        return signed_headers(url, self._region, self._credentials, datetime.now(UTC))


def signed_headers(url: str, region: str, credentials: Credentials, now: datetime) -> dict[str, str]:
    """Sign a GET by AWS Signature Version 4 and return its headers.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html

    Args:
        url: address with a quoted path and a query sorted by name, as the signature requires.
        now: time of the request in UTC; stores refuse one that is about 15 minutes off.
    """
    # The chain of AWS Signature Version 4, for one request of 2026-01-31 in us-east-1:
    #
    #     canonical request = method, path, query, headers, their names, SHA-256 of the body; one a line
    #     text to sign      = "AWS4-HMAC-SHA256", time, "20260131/us-east-1/s3/aws4_request", SHA-256 of the request
    #     key               = HMAC of HMAC of ... : "AWS4" + secret -> day -> region -> "s3" -> "aws4_request"
    #
    # The derived key is valid for one day, region and service, so the secret itself never signs a request.
    parts = urlsplit(url)
    moment, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    headers = {"host": parts.netloc, "x-amz-content-sha256": _EMPTY_SHA256, "x-amz-date": moment}
    if credentials.session_token:
        headers["x-amz-security-token"] = credentials.session_token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = "\n".join(["GET", parts.path or "/", parts.query, lines, names, _EMPTY_SHA256])
    scope = f"{day}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    authorization = f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope},SignedHeaders={names},"
    return {**headers, "authorization": f"{authorization}Signature={signature}"}
