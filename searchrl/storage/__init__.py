"""Fetches corpora, indexes and models from S3, hubs and web servers into shared storage, once and with checksums."""
