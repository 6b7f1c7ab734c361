"""Advantages, losses and optimisers: pure functions on arrays and tensors that know no model and no transport."""
