"""Whether an answer is right: the span check, then the judge, with a cache of verdicts."""
