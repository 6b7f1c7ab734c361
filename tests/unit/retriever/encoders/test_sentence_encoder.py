"""What an encoder's folder says about itself. The model itself is tested with real questions elsewhere."""

import json
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from services.retriever.encoders import sentence_encoder
from services.retriever.encoders.encoder_description import EncoderDescription
from services.retriever.encoders.sentence_encoder import SentenceEncoder, open_described, prefixes_of

DESCRIPTION = EncoderDescription("/gone/minilm", "minilm", 384, "mean", "", "", True, 256, "0" * 64)


@pytest.mark.parametrize(
    ("name", "prefixes"),
    [
        ("e5-base-v2", ("query: ", "passage: ")),
        ("multilingual-E5-large", ("query: ", "passage: ")),
        ("bge-base-en-v1.5", ("Represent this sentence for searching relevant passages: ", "")),
        ("bge-m3", ("", "")),
        ("all-MiniLM-L6-v2", ("", "")),
    ],
)
def test_prefixes_are_those_the_family_was_trained_with(name: str, prefixes: tuple[str, str]) -> None:
    assert prefixes_of(name) == prefixes


def test_a_snapshot_of_the_hubs_cache_is_named_after_its_model() -> None:
    folder = Path("/cache/models--intfloat--e5-base-v2/snapshots/0123abcd")
    assert sentence_encoder._published_name(folder) == "e5-base-v2"
    assert sentence_encoder._published_name(Path("/models/my-model")) == "my-model"


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls_token"),
        (None, "mean"),
    ],
)
def test_the_pooling_is_read_from_the_folder(tmp_path: Path, config: dict[str, object] | None, pooling: str) -> None:
    if config is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert sentence_encoder._pooling(tmp_path) == pooling


def test_another_weight_or_setting_gives_another_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = sentence_encoder._fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("does not matter")
    assert sentence_encoder._fingerprint(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"Weights")
    assert sentence_encoder._fingerprint(tmp_path) != before


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model folder"):
        SentenceEncoder(tmp_path)


def test_a_model_that_has_moved_is_asked_for_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"'minilm'.*set encoder\.folder"):
        open_described(DESCRIPTION, None, "cpu")
