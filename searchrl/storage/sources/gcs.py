"""Fetches a folder from Google Cloud Storage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from searchrl.storage.sources.object_store import ObjectStoreSource, ask_metadata, connect, has_variable

if TYPE_CHECKING:
    from obstore.store import GCSStore


class GcsSource(ObjectStoreSource):
    """All objects below ``gs://BUCKET/PATH``.

    Environment variables: ``GOOGLE_APPLICATION_CREDENTIALS`` names a key file; without it the account of the machine
    or of the pod (GKE workload identity) is used. ``GOOGLE_BASE_URL`` is the address of another server.
    """

    schemes = ("gs",)
    form = "gs://BUCKET/PATH"
    credentials = "GOOGLE_APPLICATION_CREDENTIALS (a key file), GKE workload identity, or the machine's account"

    def open_store(self, bucket: str) -> GCSStore:
        from obstore.store import GCSStore

        return connect(GCSStore, bucket, os.environ.get("GOOGLE_BASE_URL"), has_credentials=_has_credentials())


def _has_credentials() -> bool:
    if has_variable(
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_BEARER_TOKEN",
    ):
        return True
    # Written by ``gcloud auth application-default login``.
    if (Path.home() / ".config/gcloud/application_default_credentials.json").is_file():
        return True
    host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    account = f"http://{host}/computeMetadata/v1/instance/service-accounts/default/email"
    return ask_metadata("GET", account, {"metadata-flavor": "Google"}) is not None
