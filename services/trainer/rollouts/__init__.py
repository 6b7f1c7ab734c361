"""How rollouts are dispatched, retried, grouped and handed to the learner within the allowed staleness."""
