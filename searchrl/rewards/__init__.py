"""Pure scoring functions used by trainer and evaluator alike. Standard library only."""
