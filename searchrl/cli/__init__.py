"""The command line `searchrl`: one module per command group, imported only when its command is called."""
