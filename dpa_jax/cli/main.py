"""The command line: parses and calls.

How it is parsed is in `parsing`, what the verbs do is in `verbs`. Nothing of either is
imported until signals are handled, and of `verbs` nothing for --help.
"""

import signal
import sys
from collections.abc import Sequence

from dpa_jax import errors
from dpa_jax.devices import interruption

_RESUMING = ("demo", "train", "tune", "prepare", "score-slide", "weights")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: without the program's name; None takes the process's own.

    Returns:
      0 on success, 1 when the work failed, 2 for wrong usage, 128 more than the number
      of the signal that stopped it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    is_debugged = "--debug" in arguments
    try:
        from dpa_jax.cli import parsing

        options = parsing.parse(arguments)
        from dpa_jax.cli import verbs

        verbs.run(options)
    except errors.DpaError as error:
        if is_debugged:
            raise
        print(f"dpa-jax: {error}", file=sys.stderr)
        return 2 if isinstance(error, errors.UsageError) else 1
    except OSError as error:
        if is_debugged:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"dpa-jax: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except errors.Interrupted as stopped:
        print(f"dpa-jax: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt as stopped:
        verb = next((a for a in arguments if not a.startswith("-")), "")
        hint = "; the same command goes on from what was saved"
        what = f"{str(stopped) or 'stopped'}{hint if verb in _RESUMING else ''}"
        print(f"dpa-jax: {what}", file=sys.stderr)
        return 128 + getattr(stopped, "signal", signal.SIGINT)
    return 0


def entry() -> None:
    """Is the `dpa-jax` program."""
    interruption.stop_on_signals()
    code = main()
    if code:
        from dpa_jax.devices import processes

        processes.leave(code)
    sys.exit(code)
