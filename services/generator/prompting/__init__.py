"""What the generator reads: the context message, its budget, and the call that turns it into an answer."""
