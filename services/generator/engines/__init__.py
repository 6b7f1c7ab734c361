"""Provides the engines: the built-in reader, any OpenAI-compatible server, or a vLLM process of our own."""
