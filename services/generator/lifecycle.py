"""What does starting or stopping a part look like?"""

from collections.abc import Awaitable, Callable

Step = Callable[[], Awaitable[None]]
