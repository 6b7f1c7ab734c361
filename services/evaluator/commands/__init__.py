"""Commands of the evaluator that need no running service: evaluate, build a baseline file, compose a report."""
