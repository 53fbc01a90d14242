"""Settings for every test."""

from __future__ import annotations

import torch

# tiny matrices gain nothing from threads, and threads that wait for each other on a busy machine
# lose a great deal
torch.set_num_threads(1)
