"""The evaluator: runs answering methods over question sets, keeps results, reports and compares."""
