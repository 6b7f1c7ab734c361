"""Frozen records that every part speaks of: passages, questions, trajectories, outcomes. No I/O, no third party."""
