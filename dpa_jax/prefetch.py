"""Results computed by threads ahead of the caller, in order and in bounded memory."""

import collections
import concurrent.futures
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetch(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Yields what a function returns for each item, in the order of the items.

    Args:
      function: called by the threads.
      items: taken by the caller's thread, as they are needed.
      threads: how many.
      ahead: results that exist or are worked on at most, besides the one in use.

    Raises:
      Exception: whatever the function raised for an item, in its turn.
    """
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
