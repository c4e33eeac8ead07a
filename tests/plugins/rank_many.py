"""One of the processes that train the prepared runs of the command line, one after the other. torchrun starts it."""

from __future__ import annotations

import gc
import os
import sys

from ftkit.run import worker

if __name__ == "__main__":
    from accelerate.state import AcceleratorState, GradientState

    rank = os.environ["RANK"]
    for directory in sys.argv[1:]:
        sys.argv = ["worker", directory]
        worker.main(helper=None if rank == "0" else f"rank-{rank}")
        gc.collect()  # transformers looks for a DeepSpeed config in use
        GradientState._reset_state()
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
