"""Defines the type of the functions that start or stop a part of the service."""

from collections.abc import Awaitable, Callable

Step = Callable[[], Awaitable[None]]
