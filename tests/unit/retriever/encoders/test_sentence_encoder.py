"""What is read from an encoder's folder: prefixes, pooling, name and fingerprint. No model is run here."""

import json
from pathlib import Path

import pytest

from searchrl.errors import ConfigurationError
from searchrl.storage.artifact_manifest import FetchedMarker, write_marker
from services.retriever.encoders import sentence_encoder
from services.retriever.encoders.base import EncoderDescription, EncoderOptions, EncoderSettings
from services.retriever.encoders.open_encoder import open_encoder, reopen_encoder
from services.retriever.encoders.sentence_encoder import SentenceEncoder, choose_prefixes, find_prefixes
from tests.fakes.tiny_encoder import write_tiny_encoder

DESCRIPTION = EncoderDescription("/gone/minilm", "minilm", 384, "mean", "", "", True, 256, "0" * 64)


QUERY, REPRESENT = "query: ", "Represent this sentence for searching relevant passages: "
INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


@pytest.mark.parametrize(
    ("name", "prefixes"),
    [
        ("e5-base-v2", (QUERY, "passage: ")),
        ("my-e5-base-v2-finetuned", (QUERY, "passage: ")),
        ("multilingual-E5-large", (QUERY, "passage: ")),
        ("multilingual-e5-large-instruct", (INSTRUCT, "")),
        ("e5-mistral-7b-instruct", (INSTRUCT, "")),
        ("bge-base-en-v1.5", (REPRESENT, "")),
        ("bge-large-zh-v1.5", ("为这个句子生成表示以用于检索相关文章：", "")),
        ("bge-m3", ("", "")),
        ("gte-base-en-v1.5", ("", "")),
        ("gte-large", ("", "")),
        ("gte-Qwen2-1.5B-instruct", (INSTRUCT, "")),
        ("Qwen3-Embedding-0.6B", (INSTRUCT.removesuffix(" "), "")),
        ("mxbai-embed-large-v1", (REPRESENT, "")),
        ("snowflake-arctic-embed-m-v1.5", (REPRESENT, "")),
        ("snowflake-arctic-embed-l-v2.0", (QUERY, "")),
        ("nomic-embed-text-v1.5", ("search_query: ", "search_document: ")),
        ("all-MiniLM-L6-v2", ("", "")),
        ("multi-qa-mpnet-base-dot-v1", ("", "")),
        ("contriever-msmarco", ("", "")),
        ("large5k", None),
        ("house5-base", None),
        ("encoder", None),
    ],
)
def test_prefixes_are_those_the_family_was_trained_with(name: str, prefixes: tuple[str, str] | None) -> None:
    assert find_prefixes(name) == prefixes


def test_the_models_own_prompts_go_before_its_familys_and_the_users_before_both(
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = {"query": "ask: ", "document": "text: "}
    assert choose_prefixes("e5-base-v2", own, EncoderOptions()) == ("ask: ", "text: ")
    assert choose_prefixes("e5-base-v2", own, EncoderOptions(query_prefix="")) == ("", "text: ")
    assert choose_prefixes("e5-base-v2", {"query": "", "document": ""}, EncoderOptions()) == (QUERY, "passage: ")
    assert choose_prefixes("x", {"retrieval.query": "q ", "retrieval.passage": "p "}, EncoderOptions()) == ("q ", "p ")
    assert not caplog.records


def test_a_model_of_no_known_family_gets_no_prefix_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_prefixes("house5", {}, EncoderOptions()) == ("", "")
    assert "no known family" in caplog.text


def test_a_fetched_model_is_named_after_its_address(tmp_path: Path) -> None:
    write_marker(tmp_path, FetchedMarker("hf://intfloat/e5-base-v2@main", "0"))
    assert sentence_encoder._published_name(tmp_path) == "e5-base-v2"


@pytest.fixture
def half_a_model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_model_without_its_pooling_is_refused_with_the_missing_file(half_a_model: Path) -> None:
    (half_a_model / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    with pytest.raises(ConfigurationError, match=r"lacks 1_Pooling/config\.json"):
        SentenceEncoder(half_a_model)


@pytest.mark.slow
def test_a_model_that_the_library_cannot_load_is_refused_in_one_sentence(half_a_model: Path) -> None:
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ConfigurationError, match=r"cannot load the encoder in .* on 'cpu': \w+"):
        SentenceEncoder(half_a_model)


def test_a_git_lfs_pointer_is_named(half_a_model: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n"
    (half_a_model / "model.safetensors").write_text(pointer)
    with pytest.raises(ConfigurationError, match=r"model\.safetensors is a Git LFS pointer"):
        SentenceEncoder(half_a_model)


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


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt", "sentencepiece.bpe.model"]
)
def test_another_weight_setting_or_vocabulary_gives_another_fingerprint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    before = sentence_encoder._fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("does not matter")
    assert sentence_encoder._fingerprint(tmp_path) == before
    (tmp_path / name).write_bytes(b"Content")
    assert sentence_encoder._fingerprint(tmp_path) != before


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="not a model folder"):
        open_encoder(tmp_path)


def test_a_model_that_has_moved_is_asked_for_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"'minilm'.*set encoder\.folder"):
        reopen_encoder(DESCRIPTION, EncoderSettings())


@pytest.mark.parametrize("device", ["cuda:7", "mars"])
def test_a_device_that_is_not_there_is_refused_by_name(tmp_path: Path, device: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"cannot load the encoder in .* on '{device}'"):
        SentenceEncoder(write_tiny_encoder(tmp_path), EncoderOptions(device=device))
