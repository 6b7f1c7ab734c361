"""The command line `searchrl`; one module per command group, loaded when called."""
