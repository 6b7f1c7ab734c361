"""Forms a Ray cluster from the pods of one Job, runs the trainer on it, and reserves the places of a run's actors."""
