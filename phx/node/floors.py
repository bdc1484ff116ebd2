"""How much of the groups' logs a node keeps: who holds what.

A *pin* holds the log of one group from an instance on, as long as somebody needs it: who sends a
checkpoint (the log behind it is needed afterwards), and a mirror that reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["Floors", "Pin"]


class Pin:
    """Made by `Floors.pin` only. Any thread.

    Attributes:
        group: whose log.
        first: the lowest instance that it holds.
    """

    def __init__(self, floors: Floors, group: int, first: int) -> None:
        self._floors = floors
        self.group = group
        self.first = first

    def move(self, first: int) -> None:
        """What is below `first` is not needed any more. It never moves back."""
        self._floors._moved(self, first)

    def release(self) -> None:
        """Nothing is needed any more. Idempotent."""
        self._floors._released(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class Floors:
    """The floors of a node's groups. Any thread.

    Args:
        kept_from: lowest instance of a group that the store keeps now.
    """

    def __init__(self, kept_from: Callable[[int], int]) -> None:
        self._kept_from = kept_from
        self._lock = threading.Lock()
        self._wanted: dict[int, int] = {}  # floors that are raised, or about to be
        self._pins: dict[int, set[Pin]] = {}

    def pin(self, group: int, first: int) -> Pin:
        """Hold the log of a group from instance `first` on until the pin is released.

        Guarantee: from now on trimming by this node's own checkpoints removes nothing from
        ``Pin.first`` on. That is `first`, or a greater one if what lies between is not there any
        more, or about to go: whoever needs it compares. It is no promise that the log goes down to
        there already or reaches up to anything; and where a checkpoint of another node is
        installed, the log below that goes, pinned or not.

        Args:
            first: from 1 on.

        Raises:
            ValueError: there is no such instance.
        """
        if first < 1:
            raise ValueError("instances are counted from 1")
        with self._lock:
            floor = max(self._wanted.get(group, 1), self._kept_from(group))
            made = Pin(self, group, max(first, floor))
            self._pins.setdefault(group, set()).add(made)
            return made

    def pinned(self, group: int) -> int | None:
        """The lowest instance that is held; None: no pin is."""
        with self._lock:
            return min((one.first for one in self._pins.get(group, ())), default=None)

    def _moved(self, pin: Pin, first: int) -> None:
        with self._lock:
            pin.first = max(pin.first, first)

    def _released(self, pin: Pin) -> None:
        with self._lock:
            pins = self._pins.get(pin.group, set())
            pins.discard(pin)
            if not pins:
                self._pins.pop(pin.group, None)
