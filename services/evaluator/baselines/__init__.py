"""Naive-RAG baselines for training, and import and export of s3's result files."""
