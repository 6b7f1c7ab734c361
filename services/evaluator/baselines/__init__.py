"""Naive-RAG baselines for training, and the result files of s3 in both directions."""
