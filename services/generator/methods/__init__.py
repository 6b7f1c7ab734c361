"""The answering methods, one per file: each gathers documents its own way, then the generator answers from them."""
