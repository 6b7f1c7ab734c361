"""A new encoder: counts the letters of a text."""

from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from numpy.typing import NDArray

from services.retriever.encoders.base import Encoder, EncoderDescription, EncoderOptions

MODEL_FILE = "letters.txt"


class LetterEncoder(Encoder):
    """Gives texts with the same shares of letters the same vector."""

    def __init__(self, folder: Path, options: EncoderOptions = EncoderOptions()) -> None:
        self.description = EncoderDescription(
            str(folder), "letters", len(ascii_lowercase), "none", "", "", is_normalized=True, max_tokens=512, sha256="0"
        )

    @staticmethod
    def is_model_folder(folder: Path) -> bool:
        return (folder / MODEL_FILE).is_file()

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.encode_passages(texts)

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        counts_ND = np.array([[text.lower().count(letter) for letter in ascii_lowercase] for text in texts], np.float32)
        return counts_ND / np.linalg.norm(counts_ND, axis=1, keepdims=True)
