"""Measurements against other libraries, each in one process, with its last output beside it."""

import os

# Decompositions of small matrices: threads that wait for each other cost more than they bring.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
