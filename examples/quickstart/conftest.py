"""Models as small as these run no faster on several threads, and much slower where cores are shared."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
