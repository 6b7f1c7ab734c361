"""From stored results to a page a person reads and a summary a program reads."""
