"""Fetches a folder from Azure Blob Storage."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from searchrl.errors import ConfigurationError
from searchrl.storage.sources.object_store import ObjectStoreSource, ask_metadata, connect, has_variable

if TYPE_CHECKING:
    from obstore.store import AzureStore

_TOKEN_URL = (
    "http://169.254.169.254/metadata/identity/oauth2/token"
    "?api-version=2018-02-01&resource=https%3A%2F%2Fstorage.azure.com"
)


class AzureSource(ObjectStoreSource):
    """All blobs below ``az://CONTAINER/PATH`` of the account ``AZURE_STORAGE_ACCOUNT_NAME``.

    Environment variables: those of the Azure libraries, such as ``AZURE_STORAGE_ACCOUNT_KEY``; the variables that
    workload identity adds to a pod; without them the managed identity of the machine.
    """

    schemes = ("az",)
    form = "az://CONTAINER/PATH"
    credentials = (
        "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, AZURE_CLIENT_SECRET, workload identity, "
        "or the machine's identity"
    )

    def open_store(self, bucket: str) -> AzureStore:
        from obstore.store import AzureStore

        if not has_variable("AZURE_STORAGE_ACCOUNT_NAME"):
            raise ConfigurationError(f"{self.uri}: set AZURE_STORAGE_ACCOUNT_NAME to the account of the container")
        endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT") or os.environ.get("AZURE_ENDPOINT")
        return connect(AzureStore, bucket, endpoint, has_credentials=_has_credentials())


def _has_credentials() -> bool:
    if has_variable(
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_MASTER_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_TOKEN",
        "AZURE_CLIENT_SECRET",
        "AZURE_STORAGE_CLIENT_SECRET",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_USE_AZURE_CLI",
        "IDENTITY_ENDPOINT",
        "AZURE_IDENTITY_ENDPOINT",
        "AZURE_MSI_ENDPOINT",
    ):
        return True
    return ask_metadata("GET", _TOKEN_URL, {"metadata": "true"}) is not None
