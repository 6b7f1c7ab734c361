"""Generates synthetic worlds to train in: corpora, questions, demonstrations and a reader. Standard library only."""
