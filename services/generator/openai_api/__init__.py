"""The OpenAI front door: chat completions, completions and models, with the answering methods listed as models."""
