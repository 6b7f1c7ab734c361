"""Encoders turn texts into vectors. Only this package may use torch, which is imported when an encoder is opened.

The first encoder in this list that recognizes a model's folder opens it.
"""

from services.retriever.encoders.base import Encoder
from services.retriever.encoders.sentence_encoder import SentenceEncoder

ENCODERS: dict[str, type[Encoder]] = {"sentence-transformers": SentenceEncoder}
