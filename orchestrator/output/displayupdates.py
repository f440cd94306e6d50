"""DisplayUpdates: the last content that one cell gave to displays, by their ids. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from orchestrator.output.events import DisplayData, ErrorOutput, ExecuteResult, Output, UpdateDisplayData


@dataclass(slots=True)
class _Update:
    """The last update of an id.

    Attributes:
        number: of its event among the cell's.
        size: bytes that the event takes in memory.
        times: how many of the cell's displays show it.
    """

    event: UpdateDisplayData
    number: int
    size: int
    times: int


class DisplayUpdates:
    """The updates of the cell's own displays, and of displays that earlier cells made.

    Attributes:
        cost: bytes of all of them, each counted as often as it is shown: a notebook repeats it.
    """

    def __init__(self) -> None:
        self.cost = 0
        self._shown: Counter[str] = Counter()  # how many of the cell's displays of each id are kept
        self._own: dict[str, _Update] = {}
        self._earlier: dict[str, _Update] = {}
        self._unstreamed: dict[str, None] = {}

    def __len__(self) -> int:
        """Return how many ids of earlier cells' displays have an update."""
        return len(self._earlier)

    def show(self, display_id: str) -> None:
        """Count a display of the cell's own. It takes the place of an earlier update of its id."""
        self._shown[display_id] += 1
        self._unstreamed.pop(display_id, None)
        if (update := self._earlier.pop(display_id, None)) is not None:
            self.cost -= update.size

    def forget(self, display_id: str) -> None:
        """Forget a display that was left out, and its update if no other one has its id."""
        self._shown[display_id] -= 1
        left = self._shown[display_id]
        update = self._own.get(display_id)
        if update is not None and update.times > left:
            self.cost -= update.size
            update.times = left
        if not left:
            del self._shown[display_id]
            self._own.pop(display_id, None)
            self._unstreamed.pop(display_id, None)

    def clear(self) -> None:
        """Forget the cell's own displays. The displays of earlier cells stay updated."""
        self._shown.clear()
        self._own.clear()
        self._unstreamed = {name: None for name in self._unstreamed if name in self._earlier}
        self.cost = sum(update.size for update in self._earlier.values())

    def is_own(self, display_id: str) -> bool:
        """Return whether the cell has a display of this id."""
        return display_id in self._shown

    def is_new(self, display_id: str) -> bool:
        """Return whether neither the cell's own displays nor its updates have this id."""
        return display_id not in self._shown and display_id not in self._earlier

    def more(self, display_id: str, size: int) -> int:
        """Return by how many bytes an update of ``size`` bytes would raise ``cost``."""
        before = self._updates(display_id).get(display_id)
        return size * self._times(display_id) - (0 if before is None else before.size * before.times)

    def add(self, event: UpdateDisplayData, number: int, size: int, *, streamed: bool) -> None:
        """Replace the content of every display of this id.

        Args:
            size: bytes that the event takes in memory.
        """
        name = event.display_id
        self.cost += self.more(name, size)
        self._updates(name)[name] = _Update(event, number, size, self._times(name))
        if not streamed:
            self._unstreamed[name] = None

    def applied(self, shown: DisplayData | ExecuteResult | ErrorOutput, number: int) -> Output:
        """Return one of the cell's outputs with its last content.

        Args:
            number: of the output's event.
        """
        if isinstance(shown, ErrorOutput) or shown.display_id is None:
            return shown
        update = self._own.get(shown.display_id)
        if update is None or update.number <= number:
            return shown
        return replace(shown, data=update.event.data, metadata=update.event.metadata)

    def of_earlier_cells(self) -> tuple[UpdateDisplayData, ...]:
        """Return the last update of each id that only displays of earlier cells have."""
        return tuple(update.event for update in self._earlier.values())

    def unstreamed(self) -> Iterator[UpdateDisplayData]:
        """Yield the updates that the consumer has not received, each once."""
        for display_id in self._unstreamed:
            yield (self._own.get(display_id) or self._earlier[display_id]).event
        self._unstreamed = {}

    def _updates(self, display_id: str) -> dict[str, _Update]:
        return self._own if display_id in self._shown else self._earlier

    def _times(self, display_id: str) -> int:
        return self._shown.get(display_id, 1)
