"""One process of a training with several. A distributed launcher starts it, and sets RANK, WORLD_SIZE, LOCAL_RANK:

    torchrun --nproc-per-node 2 -m ftkit_trl.rank DIR
    accelerate launch --config_file FILE -m ftkit_trl.rank DIR

The process of rank 0 is ftkit's worker (see `ftkit.run.worker`), the others are its helpers.
"""

from __future__ import annotations

import os

from ftkit.run import worker

if __name__ == "__main__":
    rank = os.environ["RANK"]
    worker.main(helper=None if rank == "0" else f"rank-{rank}")
