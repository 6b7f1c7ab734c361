"""Reads questions: one reader for training, evaluation and baselines, for the files and rows that are in use."""
