"""The version of the native API, which a server and its clients compare before they work together. Pure."""

from __future__ import annotations

from typing import Final

SERVED: Final = (1, 1)
"""The oldest and the newest protocol that this version speaks as a server. The newest grows with what a client may use
only where the server has it; the oldest, when a client of an older version could misunderstand an answer."""
PROTOCOL: Final = SERVED[1]
SPOKEN: Final = (1, 1)
"""The oldest and the newest protocol that this version speaks as a client."""


def have_one_in_common(spoken: tuple[int, int], served: tuple[int, int]) -> bool:
    """Return whether a client and a server have a protocol in common, each by its oldest and its newest."""
    return spoken[0] <= served[1] and served[0] <= spoken[1]
