"""Runs the retriever with an encoder that fails while a file exists.

Run by ``python -m tests.integration.retriever.failing_retriever``; the environment's ``FAIL_WHILE`` names the file.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.retriever.__main__ import main
from services.retriever.encoders.sentence_encoder import SentenceEncoder

_SWITCH = Path(os.environ["FAIL_WHILE"])
_encode_queries = SentenceEncoder.encode_queries


def _fail_or_encode(encoder: SentenceEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    if _SWITCH.exists():
        raise RuntimeError("CUDA out of memory")
    return _encode_queries(encoder, texts)


SentenceEncoder.encode_queries = _fail_or_encode  # pyright: ignore[reportAttributeAccessIssue]

if __name__ == "__main__":
    main()
