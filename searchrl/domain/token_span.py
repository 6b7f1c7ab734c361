"""Enumerates the parts of a trajectory to which a token can belong."""

from enum import IntEnum


class Segment(IntEnum):
    """Kind of a token's span. Stored as int16 per token; the numbers are part of the file format."""

    PROMPT = 0
    OBSERVATION = 1
    THINK = 2
    QUERY = 3
    SELECTION = 4
    ANSWER = 5
    ACTION = 6  # sampled, but in none of the tagged spans
