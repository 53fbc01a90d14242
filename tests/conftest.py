"""Settings for every test."""

from __future__ import annotations

import torch
from hypothesis import settings

# tiny matrices gain nothing from threads, and threads that wait for each other on a busy machine
# lose a great deal
torch.set_num_threads(1)
# a slow machine is no failure
settings.register_profile("tandem", deadline=None)
settings.load_profile("tandem")
