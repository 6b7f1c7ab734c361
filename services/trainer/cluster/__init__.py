"""Forms a Ray cluster from the pods of one Job, runs the trainer on it, and places a run's actors and vLLM servers."""
