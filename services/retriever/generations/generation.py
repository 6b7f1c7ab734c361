"""Opens an index generation for searching."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.retriever.corpora.passage_store import PassageStore
from services.retriever.indexes import INDEX_KINDS
from services.retriever.indexes.base import OpenEncoder, OpenInputs, check_count, report_damage
from services.retriever.indexes.manifest import (
    PASSAGES_FOLDER,
    DamagedIndex,
    Manifest,
    Verification,
    read_manifest,
    verify_files,
)
from services.retriever.indexes.vectors.base import DEFAULT_EFFORT, ON_CPU, ExactSettings, SearchEffort
from services.retriever.ranking import Ranker


@dataclass(frozen=True)
class Generation:
    """An opened index generation. A running search holds a reference, so a swap never unmaps what it reads.

    ``first_stages`` has the indexes that each mode asks; the rankings of several are fused.
    """

    manifest: Manifest
    passages: PassageStore
    first_stages: Mapping[str, Sequence[Ranker]]
    effort: SearchEffort = DEFAULT_EFFORT
    exact: ExactSettings = ON_CPU

    @property
    def id(self) -> str:
        return self.manifest.generation

    @property
    def model_key(self) -> str:
        """Names the encoder and the search effort: what a ranking depends on besides the generation's files."""
        encoder = self.manifest.encoder
        if encoder is None:
            return ""
        # The effort changes what FAISS finds, and rounding what GPUs find, so rankings cached under another one must
        # not be used.
        if self.manifest.vectors == "faiss":
            return f"{encoder.sha256} {self.effort!r}"
        return " ".join(filter(None, (encoder.sha256, self.exact.key)))

    @property
    def default_mode(self) -> str:
        """The mode of searches that name none."""
        return self.manifest.kind


def open_generation(
    folder: Path,
    open_encoder: OpenEncoder,
    verification: Verification = "auto",
    effort: SearchEffort = DEFAULT_EFFORT,
    exact: ExactSettings = ON_CPU,
) -> Generation:
    """Check and map a generation. ``effort`` takes precedence over the one recorded at build time.

    Raises:
        DamagedIndex: a part is missing, unreadable or does not fit the others.
        ConfigurationError: it needs another encoder or another version of this program.
    """
    manifest = read_manifest(folder)
    if manifest.kind not in INDEX_KINDS:
        raise DamagedIndex(f"{folder} is of unknown kind '{manifest.kind}'; known: {', '.join(INDEX_KINDS)}")
    effort = effort.or_else(manifest.effort)
    verify_files(folder, manifest, verification)
    with report_damage():
        passages = PassageStore(folder / PASSAGES_FOLDER)
    inputs = OpenInputs(folder, manifest, passages, open_encoder, effort, exact)
    check_count(inputs, "passages", len(passages))
    return Generation(manifest, passages, INDEX_KINDS[manifest.kind].open(inputs), effort, exact)
