"""Scoring: the measures of one episode, and their summary over the questions of a method."""
