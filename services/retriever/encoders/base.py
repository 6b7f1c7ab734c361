"""Defines encoders: what they do, what the user may choose, and how an index describes the one that built it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from searchrl.platform.settings import Section


class EncoderSettings(Section):
    """The model of dense and hybrid indexes."""

    folder: Path | None = Field(default=None, description="Folder of the model; unset: its folder at build time.")
    device: str = Field(default="cpu", description="Device that it runs on: cpu, cuda ...")

    def build_arguments(self) -> tuple[str, ...]:
        """Arguments of the build command for a build with this model; empty if no folder is set."""
        return () if self.folder is None else ("--encoder", str(self.folder), "--device", self.device)


class EncoderOptions(NamedTuple):
    """What the user may choose; None uses the value of the model's folder or family."""

    query_prefix: str | None = None
    passage_prefix: str | None = None
    normalize: bool = True
    max_tokens: int | None = None
    device: str = "cpu"


# Frozen, hence hashable: it is the key by which generations share one opened model.
@dataclass(frozen=True)
class EncoderDescription:
    """Stored in the index's manifest, so that queries are encoded like the passages.

    ``sha256`` covers the model's configuration and weights, which detects another model of the same name.
    """

    folder: str
    name: str
    dimensions: int
    pooling: str
    query_prefix: str
    passage_prefix: str
    is_normalized: bool
    max_tokens: int
    sha256: str


class Encoder(ABC):
    """Turns texts into vectors. Called by one thread at a time. The members are listed in ``ENCODERS``."""

    description: EncoderDescription

    @abstractmethod
    def __init__(self, folder: Path, options: EncoderOptions = EncoderOptions()) -> None:
        """Open the model in ``folder``.

        Raises:
            ConfigurationError: the folder holds no usable model.
        """

    @staticmethod
    @abstractmethod
    def is_model_folder(folder: Path) -> bool:
        """Whether this class can open the model in ``folder``."""

    @abstractmethod
    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [Q, D] of queries."""

    @abstractmethod
    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [N, D] of passages."""
