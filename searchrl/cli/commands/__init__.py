"""The commands of `searchrl`; each module says its arguments and runs."""
