"""Records that every part of the project uses: passages, questions, trajectories, outcomes.

No I/O, no third-party libraries."""
