"""Fetches corpora, indexes and models into shared storage, once and with checksums, and replaces files atomically."""
