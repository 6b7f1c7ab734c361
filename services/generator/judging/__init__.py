"""Whether an answer is right: the rules, then the judge, with a cache of verdicts."""
