"""The wiring of the retriever shares a loaded model between generations."""

import gc
import weakref
from dataclasses import replace

import pytest

from services.retriever import wiring
from services.retriever.encoders.base import EncoderDescription, EncoderSettings


class Model:
    """Represents the weights of an encoder."""


def test_a_model_is_loaded_once_and_leaves_memory_with_the_last_generation_that_uses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[weakref.ref[Model]] = []

    def open_model(description: EncoderDescription, settings: EncoderSettings) -> Model:
        model = Model()
        opened.append(weakref.ref(model))
        return model

    monkeypatch.setattr(wiring, "reopen_encoder", open_model)
    open_encoder = wiring._share_encoders(EncoderSettings())
    description = EncoderDescription("/models/minilm", "minilm", 384, "mean", "", "", True, 256, "0" * 64)
    first, second = open_encoder(description), open_encoder(description)
    assert first is second
    assert len(opened) == 1
    other = open_encoder(replace(description, sha256="1" * 64))
    del first, second
    gc.collect()
    assert opened[0]() is None
    assert other is not None
