"""The errors that a user may see. Each says what is wrong, where, and the way out.

They belong to start-up, reload and commands. The packet path raises no errors: it has named verdicts
(scentd.wire.layout.VERDICTS).
"""


class ScentdError(Exception):
    """Base of every error that is reported to the user in one line. Exit status 1."""


class ConfigError(ScentdError):
    """The configuration is wrong. `problems` is a list of "path: what, and the way out". Exit status 2."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class UsageError(ScentdError):
    """An argument of the command line is wrong. Exit status 2."""


class KeyFileError(ScentdError):
    """A key file is missing, unreadable, readable by others or does not hold a key."""


class HostError(ScentdError):
    """The host lacks something: a privilege, a kernel feature, a program, room on a disk."""
