"""The families of search models that the loop can run: s3 and Search-R1, each in a strict and a legacy mode."""
