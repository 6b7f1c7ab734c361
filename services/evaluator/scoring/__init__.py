"""Scoring: metrics of one episode, means with intervals, and paired differences between methods."""
