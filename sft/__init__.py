"""Supervised fine-tuning: from conversations to a model. `sft/loop.py` is the page to read first."""
