"""Computes rewards: the kinds of reward, the generator calls that they need, and a memo within a step."""
