"""What is shown beside the faults: the drill, and that secrets stay secret."""

from __future__ import annotations

from .requirement import Must, Row, one

DRILL = "cluster/test_drill_on_slurm.py::"

ROWS = (
    Row(
        101,
        "`launch drill` on a cluster that goes on",
        "the drill's own: none, stop, kill, hang, death in a save, full disk",
        one(Must(0, "6 of 6 rows passed")),
        (f"{DRILL}test_a_drill_passes",),
    ),
    Row(
        102,
        "`launch drill` with a broken setting",
        "--chain none: nothing follows a stop or a death",
        one(Must(1, "its attempts ended with 10; they must with 10 then 0", also="names the rows that fail, and why")),
        (f"{DRILL}test_a_broken_setting_fails_the_drill",),
    ),
    Row(
        103,
        "a secret in the environment and in an env file",
        "a canary in each; umask 022",
        one(Must(0, also="in no file, script, command line, job record or pickle; files 0600, directories 0700")),
        ("cluster/test_canary.py::test_no_secret_is_written_anywhere",),
    ),
)
