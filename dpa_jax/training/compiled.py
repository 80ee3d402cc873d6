"""Compiled programs, kept from run to run where many runs are made alike."""

from collections.abc import Callable, Hashable
from typing import Any

Key = tuple[Hashable, ...]


class Programs:
    """Compiled programs by all that they were compiled from.

    All are of one machine. A run has its own, and forgets those of a stage that it
    trains; the folds of a study share theirs.
    """

    def __init__(self) -> None:
        self._found: dict[Key, Any] = {}
        self._used: set[Key] = set()

    def get(self, key: Key, make: Callable[[], Any]) -> Any:
        """Returns the program of a key, which `make` compiles if there is none."""
        self._used.add(key)
        if key not in self._found:
            self._found[key] = make()
        return self._found[key]

    def forget(self, is_over: Callable[[Key], bool]) -> None:
        """Forgets programs by their keys, while others may still be compiled."""
        for key in filter(is_over, list(self._found)):
            del self._found[key]

    def forget_unused(self) -> None:
        """Forgets what was not used since this was called last."""
        self.forget(lambda key: key not in self._used)
        self._used = set()
