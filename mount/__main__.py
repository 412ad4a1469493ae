"""The `atoll` command: reads the command line, runs one command, and says what went wrong.

    atoll [--name NAME] COMMAND ...

A mistake of the user's, or of the host's, ends with a line that names the thing and the cause, one
with the remedy, and an exit status: 1 it failed, 2 the command line is wrong, 3 there is no such
system.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence

gc.disable()  # until all is imported: nothing of that is garbage

from .commands import audit, capture, chaos, demo, life, link, programs, servers, show, volume, why  # noqa: E402
from .commands.output import complain  # noqa: E402
from .commands.parser import Commands  # noqa: E402
from .obstacle import FAILED, ObstacleError  # noqa: E402


def commands() -> Commands:
    """Return all commands, as the parser knows them."""
    found = Commands()
    for group in (life, show, why, audit, servers, programs, chaos, link, capture, volume, demo):
        group.register(found)
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        words: the command line; None: this process's.
    """
    arguments = commands().parser.parse_args(words)
    gc.freeze()
    gc.enable()
    try:
        status: int = arguments.command(arguments)
        sys.stdout.flush()
    except ObstacleError as error:
        complain(f"{error.thing}: {error.cause}")
        if error.remedy:
            sys.stderr.write(f"  {error.remedy}\n")
        return error.status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # who read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        complain(reason)
        return FAILED
    return status


def _reason(error: Exception) -> str | None:
    """Return the words of an error that a user can understand; None for a mistake of ours."""
    from core.errors import AtollError
    from core.userlib.line import ClosedError

    if isinstance(error, ExceptionGroup):
        reasons = [_reason(each) for each in error.exceptions]
        return None if None in reasons else reasons[0]
    if isinstance(error, ClosedError):
        return "the system ended; see: atoll status"
    return str(error) if isinstance(error, AtollError) else None


if __name__ == "__main__":
    sys.exit(main())
