"""Measures how many passages per second an encoder of BERT-base's shape encodes.

    python -m tests.bench.retriever.encoder_throughput --device cuda --output result.json

The weights are random; passages have 50 to 100 numbered words of one token each. Operations are 2 per weight and token;
attention and padding are not counted.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from services.retriever.encoders.base import EncoderOptions
from services.retriever.encoders.sentence_encoder import SentenceEncoder
from tests.bench.tables import markdown_table
from tests.fakes.tiny_encoder import numbered_passages, write_tiny_encoder

SHAPES = {
    "bert-base": {"width": 768, "layers": 12, "heads": 12, "words": 30517},
    "tiny": {"width": 64, "layers": 2, "heads": 2, "words": 500},
}
COLUMNS = ("shape", "device", "passages", "tokens", "seconds", "passages/s", "tokens/s", "TFLOP/s", "peak GiB")


def measure(shape: str, device: str, count: int, words: int, repeats: int) -> dict[str, object]:
    """Measure the median of ``repeats`` passes over the same passages, including the copy of vectors from the GPU."""
    size = SHAPES[shape]
    with tempfile.TemporaryDirectory() as folder:
        encoder = SentenceEncoder(write_tiny_encoder(Path(folder), **size), EncoderOptions(device=device))
    passages = numbered_passages(count, words, size["words"])
    encoder.encode_passages(passages[:256])  # warm-up, not measured
    taken: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        encoder.encode_passages(passages)
        taken.append(time.perf_counter() - started)
    seconds = statistics.median(taken)
    tokens = sum(len(passage.split()) + 2 for passage in passages)  # [CLS] and [SEP]
    weights = size["layers"] * 12 * size["width"] ** 2  # a layer: 4 w^2 for attention, 2 * 4 w^2 for the feed-forward
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device != "cpu" else 0.0
    return {
        "shape": shape, "device": device, "passages": count, "tokens": tokens, "seconds": seconds,
        "passages/s": count / seconds, "tokens/s": tokens / seconds, "TFLOP/s": 2 * weights * tokens / seconds / 1e12,
        "peak GiB": peak,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="bert-base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--passages", type=int, default=4096)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.shape, arguments.device, arguments.passages, arguments.words, arguments.repeats)
    markdown_table(f"Encoding, torch {torch.__version__}", COLUMNS, [result])
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
