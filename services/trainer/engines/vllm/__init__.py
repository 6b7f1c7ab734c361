"""vLLM servers as the engine of a run: routing of rollouts, replacement of lost servers, weight transfer."""
