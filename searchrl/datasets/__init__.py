"""Reads questions: one reader for training, evaluation and baselines, for the file and row formats in common use."""
