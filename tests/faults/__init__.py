"""The faults that a run must outlive: what is done to it, what must come of it, and what did (docs/faults.md)."""
