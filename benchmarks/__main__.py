"""All benchmarks in one run, in one table: what ``make bench`` prints.

Usage: ``python benchmarks [--scale X] [--pairs N] [--folder DIR] [--json FILE] [--million]``
"""

from __future__ import annotations

import kernel
import loading
import manifest
import remotes
import restore
import startup
import verify
from timing import main

if __name__ == "__main__":
    main(
        kernel.rows,
        startup.rows,
        manifest.rows,
        verify.rows,
        restore.rows,
        remotes.rows,
        loading.rows,
    )
