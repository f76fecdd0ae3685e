"""torchrun that ends with the exit code of its workers and lets them save: `python -m pretrain.launch`, same options.

torchrun itself ends with 1 whatever its workers said, so a scheduler cannot tell a stop (75, start it again) from a fault; it
gives them 30 s after a signal, less than one step over a large slide; and SIGUSR1, which SLURM tutorials send, kills it and
leaves its workers behind unless it is named in `--signals-to-handle`. Here SIGTERM and SIGUSR1 go to the workers, and the
launcher waits for them; whoever sent the signal decides how long.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pretrain.exit_codes import EXIT_INTERRUPTED, EXIT_STOPPED, MEANINGS, combined

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1)


class Signals:
    """Passes SIGTERM and SIGUSR1 on to the workers; before there are any it ends this process."""

    def __init__(self) -> None:
        self.came = False
        for number in PASSED_ON:
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        workers = child_processes()
        if not workers:
            sys.exit(EXIT_STOPPED)  # still waiting for the other nodes: nothing to save
        for pid in workers:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # it has just ended by itself


def child_processes() -> list[int]:
    """Processes that this one started: the workers, not what they have started themselves."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if int(after_name[1]) == os.getpid() and after_name[0] != "Z":
            found.append(int(status.parent.name))
    return found


def shell_code(code: int) -> int:
    """The exit code as a shell tells it: 128 + the number of the signal that ended a process."""
    return 128 - code if code < 0 else code


def launch(arguments: Sequence[str]) -> int:
    """Run torchrun with these arguments; returns the common exit code of the workers of this node."""
    signals = Signals()  # before torch is imported, which takes seconds
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = torchrun.parse_args(["--signals-to-handle", "SIGINT", *arguments])  # type: ignore[no-untyped-call]
    try:
        torchrun.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        failures = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
        code = combined([failure.exitcode for failure in failures], signals.came)
        meaning = MEANINGS.get(code, "the message of the worker says why")
        print(f"launch: {len(failures)} workers of this node ended early, exit code {code}: {meaning}", file=sys.stderr)
        return shell_code(code)
    except SignalException:  # Ctrl-C; torchrun has ended the workers
        return EXIT_INTERRUPTED
    return 0


def main() -> None:
    if len(sys.argv) == 1 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        print("Example: python -m pretrain.launch --nproc-per-node 12 -m pretrain train -c manifests/breast.toml --resume\n"
              "Options: those of torchrun, see `torchrun --help`. Exit codes: those of `python -m pretrain train`.")  # fmt: skip
        return
    sys.exit(launch(sys.argv[1:]))


if __name__ == "__main__":
    main()
