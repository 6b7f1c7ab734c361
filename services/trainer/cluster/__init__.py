"""Forms a Ray cluster from the pods of one Job, and runs the trainer on it."""
