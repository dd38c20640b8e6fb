"""One torch thread: more slow the tiny models down."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
