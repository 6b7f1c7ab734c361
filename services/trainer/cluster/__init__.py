"""Forms a Ray cluster from the pods of one Job, runs the trainer on it, places a run's actors, and runs vLLM in some."""
