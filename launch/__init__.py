"""From a request to a running job on several nodes: dry run, submission, status, logs, cancellation.

Imports neither torch nor deepspeed: it starts their launchers as programs.
"""
