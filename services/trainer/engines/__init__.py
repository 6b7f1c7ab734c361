"""What samples tokens: an in-process torch engine for tiny models, a client of vLLM, a script for tests."""
