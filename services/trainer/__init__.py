"""Trains searchers: rollouts, rewards, advantages, policy updates, checkpoints; also SFT and a tiny policy server."""
