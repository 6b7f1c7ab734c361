"""An encoder on a GPU gives the vectors of the CPU: an index built on one is searched on the other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from searchrl.errors import ConfigurationError
from services.retriever.encoders.base import EncoderOptions, EncoderSettings
from services.retriever.encoders.open_encoder import reopen_encoder
from services.retriever.encoders.sentence_encoder import SentenceEncoder
from services.retriever.indexes.vectors.exact import ExactIndex
from tests.fakes.tiny_encoder import numbered_passages, write_tiny_encoder

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder"), width=128, layers=4, heads=4)


def test_vectors_equal_those_of_the_cpu(encoder_folder: Path, device: str) -> None:
    passages = numbered_passages(150, 60)
    on_cpu = SentenceEncoder(encoder_folder)
    on_gpu = SentenceEncoder(encoder_folder, EncoderOptions(device=device))
    assert next(on_gpu._model.parameters()).device.type == device
    expected, vectors = on_cpu.encode_passages(passages), on_gpu.encode_passages(passages)
    assert vectors.shape == (150, 128) and vectors.dtype == np.float32
    assert len({tuple(vector.round(3)) for vector in vectors}) == 150
    assert np.abs(vectors - expected).max() < 1e-4
    assert np.abs(on_gpu.encode_queries(["w1 w2"]) - on_cpu.encode_queries(["w1 w2"])).max() < 1e-4


def test_an_index_of_the_cpu_is_asked_on_the_gpu(encoder_folder: Path, device: str) -> None:
    opened = reopen_encoder(SentenceEncoder(encoder_folder).description, EncoderSettings(device=device))
    assert opened.description == SentenceEncoder(encoder_folder).description


def test_exact_search_over_vectors_of_the_gpu_finds_the_nearest_passages(
    encoder_folder: Path, tmp_path: Path, device: str
) -> None:
    passages = numbered_passages(150, 60)
    on_cpu = SentenceEncoder(encoder_folder)
    on_gpu = SentenceEncoder(encoder_folder, EncoderOptions(device=device))
    vectors = torch.from_numpy(on_gpu.encode_passages(passages))
    queries = [" ".join(passage.split()[:12]) for passage in passages[:20]]
    index = ExactIndex.build(tmp_path, [vectors.numpy()])
    asked = on_gpu.encode_queries(queries)
    nearest = torch.topk(torch.from_numpy(asked).to(device) @ vectors.to(device).T, 5)
    for query_vectors in (asked, on_cpu.encode_queries(queries)):
        found = index.search(query_vectors, 5, None)
        # scores, because passages whose scores are equal up to rounding may change places
        assert np.allclose([ranked.scores for ranked in found], nearest.values.cpu().numpy(), atol=1e-4)
        assert (
            np.mean([ranked.rows == rows for ranked, rows in zip(found, nearest.indices.tolist(), strict=True)]) > 0.9
        )


@pytest.mark.parametrize("wanted", ["cuda:7", "mars"])
def test_a_device_that_is_not_there_is_refused_by_name(encoder_folder: Path, wanted: str) -> None:
    if wanted == "cuda:7" and torch.cuda.device_count() > 7:
        pytest.skip("this machine has eight GPUs")
    with pytest.raises(ConfigurationError, match=rf"cannot load the encoder in .* on '{wanted}'"):
        SentenceEncoder(encoder_folder, EncoderOptions(device=wanted))
