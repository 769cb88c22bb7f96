"""``python -m tools.faults``."""

import os
import sys

# Before numpy and torch are imported: a process that has started threads cannot be forked.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

if __name__ == "__main__":
    from tools.faults.run import main

    sys.exit(main())
