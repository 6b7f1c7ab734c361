"""Serves the frozen LLM, the judge, and online answering with a searcher."""
