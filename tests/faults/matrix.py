"""All faults, by number."""

from __future__ import annotations

from . import of_bars, of_processes, of_runs, of_state

NUM_FAULTS = 54
"""The numbers from 1 on are those of the faults; higher ones are of what is shown beside them."""
ROWS = {row.number: row for row in (*of_processes.ROWS, *of_state.ROWS, *of_runs.ROWS, *of_bars.ROWS)}
