"""Dispatches, retries and groups rollouts, and hands them to the learner within the allowed staleness."""
