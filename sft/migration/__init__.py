"""Settings files of other trainers → ours: `python -m sft import-config`. Imports no torch."""
