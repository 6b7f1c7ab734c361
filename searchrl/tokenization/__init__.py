"""Reads a model's tokenizer and chat template from its folder, without the modeling library."""
