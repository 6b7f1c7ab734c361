"""What a rollout is worth: the kinds of reward, the calls to the generator they need, and a memo within a step."""
