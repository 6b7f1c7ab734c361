"""Provides the answering methods, one per file: each gathers documents, then the generator answers from them."""
