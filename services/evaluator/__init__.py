"""The evaluator benchmarks answering methods on the same questions, stores the results and reports them."""
