"""Advantages and losses: pure functions on arrays and tensors, without a model or a transport."""
