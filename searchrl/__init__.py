"""The shared package: domain, search loop, rewards, contracts, clients, wire codecs, platform and the command line."""

__version__ = "0.1.0"
