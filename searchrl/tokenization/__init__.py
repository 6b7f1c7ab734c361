"""A model's tokenizer and chat template, read from its folder without the modelling library."""
