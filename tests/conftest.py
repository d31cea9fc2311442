"""Every test runs on one thread, so that parallel workers do not slow each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
