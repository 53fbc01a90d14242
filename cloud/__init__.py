"""The gRPC service on the bigger machine: context store, batcher and the full model."""

import os

from shared.library_settings import make_setting

# Set before PyTorch is loaded, for its OpenMP reads it once.  A thread of GNU OpenMP that is done
# with its part spins for milliseconds by default, and where other programs keep the cores busy
# each of a pass's hundred parallel regions then waits for a turn of the scheduler.  This many turns
# bridge the gap between two regions and cost less there (benchmarks/cloud_pass.py, docs/cloud.md).
if "OMP_WAIT_POLICY" not in os.environ:
    make_setting("GOMP_SPINCOUNT", "30000")
