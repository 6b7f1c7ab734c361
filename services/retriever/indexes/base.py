"""Defines what a kind of index does: it builds its files in a generation's folder, and opens them for searching."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from searchrl.errors import ConfigurationError
from services.retriever.corpora.passage_store import PassageStore
from services.retriever.encoders.base import Encoder, EncoderDescription
from services.retriever.indexes.analyzer import Language
from services.retriever.indexes.manifest import BuildPlan, DamagedIndex, Manifest
from services.retriever.indexes.vectors.base import ExactSettings, RecallRecord, SearchEffort, Unservable
from services.retriever.indexes.vectors.passage_vectors import Progress
from services.retriever.ranking import Ranker

OpenEncoder = Callable[[EncoderDescription], Encoder]


@dataclass(frozen=True)
class BuildInputs:
    """What a build starts from; ``encoder`` is None for kinds without vectors."""

    plan: BuildPlan
    passages: PassageStore
    encoder: Encoder | None
    folder: Path
    progress: Progress


class BuiltParts(NamedTuple):
    """What a kind records in the manifest."""

    language: Language | None = None
    vectors: str | None = None
    recall: RecallRecord | None = None


@dataclass(frozen=True)
class OpenInputs:
    """What opening starts from: a generation whose manifest and passages are open already."""

    folder: Path
    manifest: Manifest
    passages: PassageStore
    open_encoder: OpenEncoder
    effort: SearchEffort
    exact: ExactSettings


class IndexKind(Protocol):
    """A kind of index; the members are listed in ``INDEX_KINDS``."""

    has_vectors: bool

    def build(self, inputs: BuildInputs) -> BuiltParts:
        """Write the files of this kind."""
        ...

    def open(self, inputs: OpenInputs) -> Mapping[str, Sequence[Ranker]]:
        """Map the files, and return the first stages of each mode; several are fused.

        Raises:
            DamagedIndex: a part is missing, unreadable or does not fit the others.
            ConfigurationError: it needs another encoder or another version of this program.
        """
        ...


@contextmanager
def report_damage() -> Iterator[None]:
    """Report unreadable files as damage: they were readable when the generation was built."""
    try:
        yield
    except Unservable:
        raise
    except ConfigurationError as error:
        raise DamagedIndex(str(error)) from error


def check_count(inputs: OpenInputs, part: str, found: int) -> None:
    """Check that a part has as many rows as the manifest says.

    Raises:
        DamagedIndex: it has not.
    """
    expected = inputs.manifest.passages
    if found != expected:
        raise DamagedIndex(f"{inputs.folder}: the {part} holds {found} rows, expected {expected}; rebuild the index")
