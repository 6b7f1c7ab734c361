"""The trainer: rollouts, rewards, advantages, policy updates, checkpoints; SFT; serving of tiny policies."""
