"""Benchmarks against what a user would pick instead: `python -m benchmarks`."""

import os

# scipy's small vector operations on two threads spin against XLA's: one thread is 30 times faster for the
# peers (L-BFGS-B, K=10, d=64, n=10), and ours call no numpy in their loops
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
