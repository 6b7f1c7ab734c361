"""Serves a tiny searcher over OpenAI's completions protocol, with the trainer's torch engine."""
