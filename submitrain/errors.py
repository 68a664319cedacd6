"""The one exception tree. Every error a user can cause or meet derives from SubmitrainError.

    SubmitrainError
    ├── UserError            the user's input is wrong: exit code 2, one clear line, no traceback
    │   ├── ConfigError          a key of the configuration
    │   ├── DataError            a data set that is missing, empty or malformed
    │   └── ClusterError         the requested cluster or its tools are not here
    └── RunError             the run failed: exit code 1
        ├── CheckpointError      no verified checkpoint where one is needed
        ├── HungError            no progress for far longer than its phase may take
        ├── FencedError          a newer attempt owns the run folder; this one must not write
        ├── NotFiniteError       loss or gradient norm is not finite
        └── LossSpikeError       the loss rose far above the usual

May import nothing of this project.
"""

from __future__ import annotations


class SubmitrainError(Exception):
    """Base of everything raised on purpose; ``exit_code`` is what the command line returns."""

    exit_code = 1

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the message. Where in our code it was raised helps nobody."""
        return [f"{type(self).__name__}: {self}"]


class UserError(SubmitrainError):
    """The user's input is wrong; the message says what, where, got, allowed and the next step."""

    exit_code = 2


class ConfigError(UserError):
    """A key of the configuration is wrong; ``problems`` holds one line for each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(UserError):
    """A data set is missing, empty or malformed."""


class ClusterError(UserError):
    """The requested cluster, or a tool needed to reach it, is not available here."""


class RunError(SubmitrainError):
    """The run itself failed."""


class CheckpointError(RunError):
    """No verified checkpoint exists where one is needed, or one cannot be written."""


class HungError(RunError):
    """A rank made no progress for far longer than its phase may take; its watchdog ends it."""


class FencedError(RunError):
    """A newer attempt owns the run folder: this process must not publish anything any more."""


class NotFiniteError(RunError):
    """Loss or gradient norm became NaN or infinite on at least one rank."""


class LossSpikeError(RunError):
    """The loss rose far above the usual, and the configuration asks to go back then."""
