"""Start the processes of one machine, and leave word of those that fail. ftkit starts it; a further machine's user too:

    python -m ftkit_trl.launcher DIR --processes 4 --nodes 2 --rendezvous HOST:PORT

PyTorch's elastic agent starts them, ends all when one fails, and is not allowed to restart them: a run resumes from its
last checkpoint when it is started again. Where a process fails, DIR/train/failures.json holds
{rank: {"exitcode", "time"}}: a negative exit code is the number of the signal that ended it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ftkit.files import write_json

_SECONDS_TO_END = 10  # that the others have to end when one process has failed


def main() -> None:
    parser = argparse.ArgumentParser(description="Train in a run directory with several processes.")
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--processes", type=int, required=True, help="processes on this machine")
    parser.add_argument("--nodes", type=int, default=1, help="machines that train together")
    parser.add_argument("--rendezvous", default="localhost:0", metavar="HOST:PORT", help="where the machines meet")
    arguments, for_each = parser.parse_known_args()

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=arguments.nodes,
        max_nodes=arguments.nodes,
        nproc_per_node=arguments.processes,
        run_id=arguments.directory.resolve().name,
        rdzv_backend="c10d",
        rdzv_endpoint=arguments.rendezvous,
        max_restarts=0,
        shutdown_timeout=_SECONDS_TO_END,
    )
    command = ["-m", "ftkit_trl.rank", str(arguments.directory), *for_each]
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        write_json(
            arguments.directory / "train" / "failures.json",
            {rank: {"exitcode": f.exitcode, "time": f.timestamp} for rank, f in error.failures.items()},
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
