"""The process of one run of a sweep: `python -m ftkit.sweep.child RUN_DIR`.

Each run has a process of its own: it gives all its memory back, and one that crashes does not take the sweep along. It
reads its standard input, a pipe of the sweep's process, and ends when that closes: it does not outlive the sweep.
SIGINT interrupts the run as Ctrl-C does. The exit status is that of `ftkit run`; messages go to standard error.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading

from ..console import Console
from ..directory import RunDirectory
from ..errors import FtkitError
from ..run.elsewhere import HERE
from ..run.stages import execute


def main() -> int:
    atexit.register(gc.freeze)  # as of the command line: a quick exit
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    try:
        execute(RunDirectory.open(sys.argv[1]), Console(), HERE)
    except FtkitError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_status
    except KeyboardInterrupt:  # before the run began, or after its end
        return 130
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1 << 10):
        pass
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
