"""What the trainer learns from: tokenizers and demonstrations of the small world."""
