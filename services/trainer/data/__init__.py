"""Training data: the task source of a run, and the small world's tokenizer, model and demonstrations."""
