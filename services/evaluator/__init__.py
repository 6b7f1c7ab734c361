"""The evaluator: benchmarks every answering method on the same questions, keeps the results and reports them."""
