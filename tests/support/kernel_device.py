"""Where the tests of kernels have their tensors: on a GPU where there is one, and else on the CPU, where Triton's kernels are interpreted.

To be imported before triton, which reads once whether it interprets.
"""

import os

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")
