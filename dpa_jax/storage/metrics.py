"""What a run writes while it trains: JSON lines and TensorBoard's event files."""

import collections
import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from dpa_jax import errors
from dpa_jax.storage import json_files
from dpa_jax.weights import formats

FILE = "metrics.jsonl"


class Writer:
    """Appends scalars to `metrics.jsonl` and to TensorBoard's event files.

    Args:
      workdir: that of the run.
      step: the one a resumed run goes on from; what was written beyond it is dropped.

    Attributes:
      last: the step of the last row that was there and is kept; 0 if there is none.

    Raises:
      DpaError: they cannot be written, and so do the methods; or a row that is there
        is damaged.
    """

    def __init__(self, workdir: str | os.PathLike, step: int):
        # its SummaryWriter writes in a thread of its own, which can fail unnoticed
        from tensorboardX import event_file_writer
        from tensorboardX.proto import event_pb2

        self._folder, self.last = pathlib.Path(workdir), 0
        messages: Any = event_pb2  # whose classes come to be when it is imported
        self._event = messages.Event
        path, board = self._folder / FILE, self._folder / "tensorboard"
        with self._reporting():
            self._keep_until(path, step)
            board.mkdir(exist_ok=True)
            self._board = event_file_writer.EventsWriter(
                str(board / "events"), f".{os.getpid()}"
            )
            start = messages.SessionLog(status=messages.SessionLog.START)
            self._board.write_event(
                self._event(wall_time=time.time(), step=step + 1, session_log=start)
            )
            self._file = open(path, "a", encoding="utf-8")

    def _keep_until(self, path: pathlib.Path, step: int) -> None:
        if not path.exists():
            return
        kept = []
        lines = path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                row = json_files.parse(line.decode("utf-8"), {"step": int})
            except ValueError as error:
                # a killed run may have left half a line at the end
                if number == len(lines) and not line.endswith(b"\n"):
                    break
                raise errors.DpaError(
                    f"{path}, line {number}: damaged, {error}; mend or delete that "
                    "line, and the same command goes on"
                ) from None
            if row["step"] <= step:
                kept.append(line.rstrip(b"\r\n") + b"\n")
                self.last = max(self.last, row["step"])
        with formats.replacing(path) as temporary:
            temporary.write_bytes(b"".join(kept))

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Records values at a step of the whole run; text goes to the JSONL alone."""
        from tensorboardX import summary

        with self._reporting():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                if not isinstance(value, str):
                    self._board.write_event(
                        self._event(
                            wall_time=time.time(),
                            step=step,
                            summary=summary.scalar(name, value),
                        )
                    )
            self._board.flush()

    def close(self) -> None:
        """Flushes and closes both."""
        with self._reporting():
            try:
                self._file.close()
            finally:
                self._board.close()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise errors.DpaError(
                f"{error.filename or self._folder}: metrics cannot be written: "
                f"{error.strerror}; "
                "checkpoints are untouched, and the same command resumes"
            ) from error


_RECENT = 10.0  # seconds


class Stopwatch:
    """Measures how fast images go by: over ten seconds, or what was last added."""

    def __init__(self):
        self.start()

    def start(self) -> None:
        """Starts the clock, no image counted yet."""
        self._counts = collections.deque([(time.perf_counter(), 0)])

    def add(self, images: int) -> float:
        """Counts images as done and returns how many were per second."""
        now, total = time.perf_counter(), self._counts[-1][1] + images
        self._counts.append((now, total))
        while len(self._counts) > 2 and now - self._counts[1][0] >= _RECENT:
            self._counts.popleft()
        begun, before = self._counts[0]
        return (total - before) / max(now - begun, 1e-9)
