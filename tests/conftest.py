"""Settings for all tests: one thread per process, because tests start processes and spinning threads fight for the cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; inherited by ranks and readers
