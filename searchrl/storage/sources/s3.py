"""Fetches a folder from S3, or from a store with the same protocol, such as MinIO."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from searchrl.storage.sources.object_store import ObjectStoreSource, ask_metadata, connect, has_variable

if TYPE_CHECKING:
    from obstore.store import S3Store


class S3Source(ObjectStoreSource):
    """All objects below ``s3://BUCKET/PATH``.

    Environment variables: those of AWS. ``AWS_REGION``, ``AWS_ENDPOINT_URL_S3`` and ``AWS_ENDPOINT_URL_STS`` say where;
    credentials are looked for in the order of the AWS libraries: a key, a web identity (IRSA), the endpoint of
    container credentials (EKS Pod Identity, ECS), the role of the EC2 instance.
    """

    schemes = ("s3",)
    form = "s3://BUCKET/PATH"
    credentials = (
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a web identity (IRSA), EKS Pod Identity, or the instance's role"
    )

    def open_store(self, bucket: str) -> S3Store:
        from obstore.store import S3Store

        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return connect(
            S3Store,
            bucket,
            endpoint,
            has_credentials=_has_credentials(endpoint),
            # The bucket in the path, not in the host name: MinIO and other stores have no DNS entry for each bucket.
            virtual_hosted_style_request=False,
        )


def _has_credentials(endpoint: str | None) -> bool:
    if has_variable(
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ):
        return True
    # The role of an instance is one of AWS, and means nothing to another store.
    if endpoint or os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return False
    address = os.environ.get("AWS_METADATA_ENDPOINT") or "http://169.254.169.254"
    ttl = {"x-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = ask_metadata("PUT", f"{address}/latest/api/token", ttl)
    roles = f"{address}/latest/meta-data/iam/security-credentials/"
    return token is not None and bool(ask_metadata("GET", roles, {"x-aws-ec2-metadata-token": token}))
