"""The retriever searches corpora (BM25, dense, hybrid), caches rankings, and builds and swaps index generations."""
