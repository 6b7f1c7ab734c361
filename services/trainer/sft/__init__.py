"""Supervised fine-tuning on a user's rows: their files, their tokens and masks, the run, and its command line."""
