"""Settings for every test."""

from __future__ import annotations

import signal

import torch
from hypothesis import settings

# tiny matrices gain nothing from threads, and threads that wait for each other on a busy machine
# lose a great deal
torch.set_num_threads(1)
# a slow machine is no failure
settings.register_profile("tandem", deadline=None)
settings.load_profile("tandem")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell without job control starts background work so, and children would inherit it: those
    # that tests interrupt would not hear it
    signal.signal(signal.SIGINT, signal.default_int_handler)
