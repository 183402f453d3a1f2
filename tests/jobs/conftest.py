"""The programs in examples/jobs and tests/jobs/peers can be imported by name."""

from __future__ import annotations

import sys
from pathlib import Path

JOBS = Path(__file__).resolve().parent
PROGRAMS = JOBS.parents[1] / "examples" / "jobs"
sys.path[:0] = [str(PROGRAMS), str(JOBS / "peers"), str(JOBS)]
