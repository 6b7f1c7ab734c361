"""Engines that sample tokens: an in-process torch engine for tiny models, and a server of it."""
