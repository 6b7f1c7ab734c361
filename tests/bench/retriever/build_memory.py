"""Measures the memory of an index build per passage: ``python -m tests.bench.retriever.build_memory``."""

import json
import sys
import tempfile
import tracemalloc
from pathlib import Path

from services.retriever.corpora.corpus_reader import CorpusReader
from services.retriever.corpora.passage_store import PassageStoreWriter

PASSAGES = 100_000  # enough that fixed costs do not show in the quotient


def bytes_per_passage(id_characters: int, fields: int) -> float:
    """Return Python's peak memory per passage while a corpus is written to a passage store; its rows are on disk."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        with corpus.open("w") as file:
            for number in range(PASSAGES):
                metadata = {f"field{field}": str(number % 1000) for field in range(fields)}
                row = {"id": f"{number:0{id_characters}}", "contents": "text", "metadata": metadata}
                file.write(json.dumps(row) + "\n")
        tracemalloc.start()
        try:
            with PassageStoreWriter(Path(folder) / "passages") as writer:
                for source in CorpusReader([corpus]):
                    writer.add(source)
            return tracemalloc.get_traced_memory()[1] / PASSAGES
        finally:
            tracemalloc.stop()


def main() -> None:
    """Print one row per kind of corpus."""
    sys.stdout.write("| id, characters | metadata fields | bytes per passage |\n|---|---|---|\n")
    for id_characters, fields in ((8, 0), (36, 0), (8, 4)):
        sys.stdout.write(f"| {id_characters} | {fields} | {bytes_per_passage(id_characters, fields):.0f} |\n")


if __name__ == "__main__":
    main()
