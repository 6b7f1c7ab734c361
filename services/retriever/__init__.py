"""The retriever: searches corpora (BM25, dense, hybrid), caches, builds and swaps index generations."""
