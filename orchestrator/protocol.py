"""The version of the native API, which a server and its clients compare before they work together. Pure."""

from __future__ import annotations

from typing import Final

PROTOCOL: Final = 1
"""What this version speaks as a server. It changes when an older client could misunderstand an answer."""
SPOKEN: Final = (1, 1)
"""The oldest and the newest protocol that this version speaks as a client."""
