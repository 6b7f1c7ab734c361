"""Reading question files: the formats, the checks and the fingerprint that a result is tied to."""
