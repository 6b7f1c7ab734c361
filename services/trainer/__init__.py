"""Trains searchers: rollouts, rewards, advantages, policy updates, checkpoints; also SFT."""
