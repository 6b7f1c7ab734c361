"""The commands of `searchrl`; each module declares its arguments and runs its command."""
