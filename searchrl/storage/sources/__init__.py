"""Names the sources that files can be fetched from."""

from searchrl.storage.sources.azure import AzureSource
from searchrl.storage.sources.base import Source
from searchrl.storage.sources.gcs import GcsSource
from searchrl.storage.sources.hub import HubSource
from searchrl.storage.sources.s3 import S3Source
from searchrl.storage.sources.web import WebSource

SOURCES: dict[str, type[Source]] = {
    scheme: source for source in (HubSource, S3Source, GcsSource, AzureSource, WebSource) for scheme in source.schemes
}
"""The sources by the scheme of their URIs. Their libraries are imported when a source is first used."""
