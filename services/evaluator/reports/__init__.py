"""Reports: turns stored results into a page for a person and a summary for a program."""
