"""Python runs this at its start where PYTHONPATH leads here: the wall clock of every process is then off."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import time_machine

time_machine.travel(datetime.now(UTC) + timedelta(seconds=float(os.environ["MEDIUS_CLOCK_AHEAD"]))).start()
