"""The trained model behind five primitives: forward_backward, optim_step, publish, save and load."""
