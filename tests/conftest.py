"""One thread for every test: the models are tiny, and threads of a busy machine wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is first imported, and by the processes tests start
