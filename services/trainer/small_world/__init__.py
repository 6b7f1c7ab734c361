"""The small world's warm start: tokenizer, untrained model, scripted demonstrations and their imitation."""
