"""Corpora, indexes and models that lie elsewhere: fetched once into shared storage, with checksums."""
