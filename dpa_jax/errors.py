"""The one error that stands for a fault of the input, told without a traceback."""


class DpaError(Exception):
    """What was given cannot be used; the message names it and says what to do.

    The command line prints the message alone and exits with 1; `UsageError` exits
    with 2.
    """


class UsageError(DpaError):
    """The call itself is wrong: a flag, a config key or a config value."""
