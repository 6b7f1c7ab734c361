"""Serves the OpenAI API: chat completions, completions and models, with the answering methods listed as models."""
