"""Decides whether an answer is correct: by rules, then by the judge, with a cache of verdicts."""
