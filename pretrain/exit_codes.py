"""How a training ends, as a number for scripts and schedulers, and one number for several of its processes."""

import signal
from collections.abc import Sequence

EXIT_FAILED = 1  # of a scheme: some folds failed, the ledger says which
EXIT_RANK_LOST = 6  # another rank ended or was silent; that one says why
EXIT_STOPPED = 75  # a signal stopped it after saving: start it again (EX_TEMPFAIL of sysexits.h)
EXIT_INTERRUPTED = 130  # Ctrl-C
MEANINGS = {
    2: "configuration",
    3: "input",
    EXIT_RANK_LOST: "another rank was lost",
    EXIT_STOPPED: "stopped by a signal after saving",
    EXIT_INTERRUPTED: "interrupted",
    -signal.SIGKILL: "killed, often for lack of memory",
    -signal.SIGSEGV: "crashed, often in a slide reader",
}


def combined(codes: Sequence[int], signalled: bool) -> int:
    """The exit code of a training from those of its processes (negative: ended by that signal, as in `subprocess`).

    A stop is a stop only if nothing else went wrong; of several failures the one that is not "another rank was lost".

    Args:
        signalled: the training was told to stop. A process that was still starting then has not saved anything, and ends by the
            signal itself; its peers miss it.
    """
    bad = [code for code in codes if code]
    stops = {EXIT_STOPPED, EXIT_INTERRUPTED}
    if signalled:
        stops |= {-signal.SIGTERM, -signal.SIGUSR1, -signal.SIGINT, EXIT_RANK_LOST}
    if not bad:
        return 0
    if all(code in stops for code in bad):
        return EXIT_INTERRUPTED if EXIT_INTERRUPTED in bad else EXIT_STOPPED
    causes = [code for code in bad if code not in stops and code != EXIT_RANK_LOST]
    return causes[0] if causes else EXIT_RANK_LOST
