"""Indexes: each turns a batch of queries into ranked row numbers of its corpus, and knows its own files."""
