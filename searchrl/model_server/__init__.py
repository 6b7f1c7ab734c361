"""vLLM servers as supervised processes: settings, command line, start, watch and restart."""
