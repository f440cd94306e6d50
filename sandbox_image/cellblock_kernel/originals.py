"""The built-in functions as they were before the first cell.

A module whose ``__builtins__`` is ``BUILTINS`` works while a cell has replaced built-in functions. Python looks at that
name when it makes the module's functions, so the assignment comes before them.
"""

import builtins
from typing import Any

BUILTINS: Any = dict(vars(builtins))
