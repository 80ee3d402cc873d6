"""Several processes that train one run: joined, led by process 0, ended together.

Arrays travel between devices by XLA's collectives. What is here travels beside them,
over TCP between process 0 and each of the others: decisions, what all start from, and
failures, so that a process which waits for another's devices is ended, and does not
wait for ever.
"""

import contextlib
import io
import json
import multiprocessing.connection
import os
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dpa_jax import errors

_CONNECT_S = 60  # to reach process 0
_LINGER_S = 10  # that process 0 gives the others to end before it
_CAUSE_S = 1  # in which the news of another process's end come, if it ended
_CARD_BYTES = 1024  # of what process 0 tells about how it is reached
_RESUMES = "the same command goes on from the last checkpoint"
_ended_together = False  # this process's group


class ProcessGroup:
    """The processes of a run; most often this one alone.

    As a context manager it tells the others of an error that leaves the body, and of
    an orderly end.

    Attributes:
      index: which process this is, from 0.
      count: how many there are.
      signal: number of a signal that asks the run to stop, or 0.
    """

    def __init__(self, index: int = 0, count: int = 1):
        self.index, self.count, self.signal = index, count, 0
        self._links: dict[int, multiprocessing.connection.Connection] = {}
        self._lock = threading.Lock()  # of what is sent: readers send too
        self._inbox: queue.Queue = queue.Queue()
        self._finished: set[int] = set()
        self._closed: set[int] = set()
        self._reported, self._is_ending = 0, False

    @property
    def is_main(self) -> bool:
        """Whether this process owns the workdir and takes the decisions."""
        return self.index == 0

    def decide(self, make: Callable[[], Any]) -> Any:
        """Returns in every process what process 0 computes.

        Args:
          make: called in process 0 alone; returns what JSON can hold.
        """
        if self.count == 1:
            return make()
        if self.is_main:
            value = make()
            self._send_all(b"d" + json.dumps(value).encode())
            return value
        if self.signal and not self._reported:
            self._reported = self.signal
            self._send(0, b"s" + str(self.signal).encode())
        return json.loads(self._receive(b"d"))

    def share(self, make: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Returns in every process the nested arrays that process 0 computes.

        Args:
          make: called in process 0 alone; returns dictionaries of arrays, at any depth.
        """
        if self.count == 1:
            return make()
        if self.is_main:
            tree = make()
            self._send_all(b"a" + _pack(tree))
            return tree
        return _unpack(self._receive(b"a"))

    def __enter__(self) -> "ProcessGroup":
        """Returns itself."""
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Sends the others how this process ends."""
        global _ended_together
        if self.count == 1:
            return
        is_error = error is not None and not isinstance(error, errors.Interrupted)
        is_plain = isinstance(error, errors.DpaError | errors.Stopped)
        if is_error and not is_plain:
            time.sleep(_CAUSE_S)  # it may come of another's end, whose news come too
        with self._lock:
            is_ended, self._is_ending = self._is_ending, True
        if is_ended:  # by another thread, which tells why
            time.sleep(2 * _LINGER_S)
        if not is_error:
            self._send_all(b"e")
            _ended_together = True
            return
        message = str(error) if is_plain else repr(error)
        self._send_all(b"f" + f"{self._name()}: {message}".encode())
        self._linger()

    # --- connections ---

    def _name(self) -> str:
        return f"process {self.index} on {socket.gethostname()}"

    def connect(self, hosts: list[str]) -> None:
        """Connects process 0 with the others.

        Args:
          hosts: names or addresses under which process 0 may be reached.
        """
        from jax.experimental import multihost_utils

        card = np.zeros(_CARD_BYTES, np.uint8)
        if not self.is_main:
            card = np.asarray(multihost_utils.broadcast_one_to_all(card))
            about = json.loads(card.tobytes().rstrip(b"\0"))
            link = _reach(about["hosts"], about["port"], bytes.fromhex(about["key"]))
            link.send_bytes(str(self.index).encode())
            self._add(0, link)
            return
        key = secrets.token_bytes(16)
        with multiprocessing.connection.Listener(
            ("", 0), backlog=self.count, authkey=key
        ) as listener:
            port = listener.address[1]
            text = json.dumps({"hosts": hosts, "port": port, "key": key.hex()}).encode()
            card[: len(text)] = np.frombuffer(text, np.uint8)
            multihost_utils.broadcast_one_to_all(card)
            for _ in range(self.count - 1):
                link = listener.accept()
                self._add(int(link.recv_bytes()), link)

    def _add(self, peer: int, link: multiprocessing.connection.Connection) -> None:
        self._links[peer] = link
        threading.Thread(target=self._read, args=(peer, link), daemon=True).start()

    def _send(self, peer: int, message: bytes) -> None:
        with self._lock:
            try:
                self._links[peer].send_bytes(message)
            except OSError:
                pass  # it is gone: its reader tells

    def _send_all(self, message: bytes) -> None:
        for peer in self._links:
            self._send(peer, message)

    def _receive(self, kind: bytes) -> bytes:
        message = self._inbox.get()
        assert message[:1] == kind, (message[:1], kind)
        return message[1:]

    def _read(self, peer: int, link: multiprocessing.connection.Connection) -> None:
        """Reads what a process sends until it ends; ends this one if it failed."""
        while True:
            try:
                message = link.recv_bytes()
            except (EOFError, OSError):
                self._closed.add(peer)
                if peer not in self._finished:
                    self._abort(f"process {peer} is gone; {_RESUMES}")
                return
            kind, content = message[:1], message[1:]
            if kind == b"e":
                self._finished.add(peer)
            elif kind == b"s":
                self.signal = self.signal or int(content)
            elif kind == b"f":
                self._finished.add(peer)
                self._abort(content.decode())
            else:
                self._inbox.put(message)

    def _abort(self, message: str) -> None:
        """Ends this process, whose main thread may wait for another for ever."""
        with self._lock:
            if self._is_ending:
                return
            self._is_ending = True

        def end() -> None:
            self._send_all(b"f" + message.encode())
            print(f"dpa-jax: {message}", file=sys.stderr, flush=True)
            self._linger()
            os._exit(1)

        threading.Thread(target=end).start()  # the others' ends are still to be read

    def _linger(self) -> None:
        """Lets the others end first: process 0 holds what JAX connects them by."""
        deadline = time.monotonic() + _LINGER_S
        while self.is_main and len(self._closed) < len(self._links):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)


def leave(code: int) -> None:
    """Ends this process after an error or a signal, and waits for nothing.

    Neither for processes that are gone nor for threads of what stopped half-way. Does
    nothing where several processes end together: JAX lets each wait for the others.
    """
    if _ended_together:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a closed pipe, which was told
            stream.flush()
    os._exit(code)


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> ProcessGroup:
    """Joins the processes of one run; call it before anything else touches JAX.

    Args:
      coordinator: `HOST:PORT` of process 0; None lets JAX ask the cluster (Slurm, Open
        MPI, Kubernetes, a TPU slice).
      processes: how many there are.
      process: which this is, from 0.

    Returns:
      The group, to be entered as a context manager.

    Raises:
      UsageError: only some of the three are given, or the others did not answer.
    """
    import jax

    given = [value is not None for value in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise errors.UsageError(
            "--coordinator, --processes and --process go together; "
            "without them --distributed asks the cluster"
        )
    # this service catches SIGTERM until training does, and stops nothing
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:
        raise errors.UsageError(
            f"the processes of this run did not find each other: {error}; "
            "give --coordinator=HOST:PORT, --processes and --process to each"
        ) from error
    return join([coordinator.rpartition(":")[0]] if coordinator else [])


def join(hosts: list[str] | None = None) -> ProcessGroup:
    """Returns the group of the processes that `jax.distributed` has joined.

    Args:
      hosts: under which process 0 may be reached, beside the name of its host.
    """
    import jax

    group = ProcessGroup(jax.process_index(), jax.process_count())
    if group.count > 1:
        group.connect([*(hosts or []), socket.gethostname(), socket.getfqdn()])
    return group


def _reach(
    hosts: list[str], port: int, key: bytes
) -> multiprocessing.connection.Connection:
    deadline, reason = time.monotonic() + _CONNECT_S, "no address"
    while time.monotonic() < deadline:
        for host in hosts:
            try:
                return multiprocessing.connection.Client((host, port), authkey=key)
            except OSError as error:
                reason = f"{host}: {error}"
        time.sleep(0.5)
    raise errors.DpaError(f"process 0 cannot be reached at port {port} ({reason})")


def _pack(tree: Mapping[str, Any]) -> bytes:
    """Writes nested dictionaries of arrays as an .npz."""
    arrays: dict[str, Any] = {}

    def add(prefix: str, node: Mapping[str, Any]) -> None:
        for name, value in node.items():
            if isinstance(value, Mapping):
                add(f"{prefix}{name}/", value)
            else:
                arrays[f"{prefix}{name}"] = np.asarray(value)

    add("", tree)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _unpack(content: bytes) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for path in arrays.files:
            *folders, name = path.split("/")
            node = tree
            for folder in folders:
                node = node.setdefault(folder, {})
            node[name] = arrays[path]
    return tree
