"""Writes the generator's prompt within its token budget, and makes the call that answers from it."""
