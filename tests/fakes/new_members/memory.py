"""A new source of files: one file that holds the rest of its URI."""

from pathlib import Path

from searchrl.storage.sources.base import RemoteFile, Source


class MemorySource(Source):
    """Holds what the URI says."""

    schemes = ("memory",)
    form = "memory://TEXT"
    credentials = "none"

    def files(self) -> list[RemoteFile]:
        return [RemoteFile("text")]

    def download(self, file: RemoteFile, path: Path) -> None:
        path.write_text(self.uri.partition("://")[2])
