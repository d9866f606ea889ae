"""Faults of disks, of data and of numbers: rows 24 to 37."""

from __future__ import annotations

from .requirement import Must, Row, one

DISK = "faults/test_state_on_disk.py::"
FULL = "faults/test_full_disks.py::"
OTHERS = "ranks/test_faults_of_runs.py::test_other_faults"
OLDER = "the checkpoint before it is taken, and ends in the undisturbed weights"

ROWS = (
    Row(
        24,
        "no room before the first checkpoint",
        "the run directory on a tmpfs that is nearly full",
        one(Must(13, "MB free; … need", also="before the first step")),
        (f"{FULL}test_too_little_room_is_told_before_the_first_step",),
    ),
    Row(
        25,
        "the disk fills up while a checkpoint is written",
        "a tmpfs, filled between two files of a save",
        {
            "once": Must(
                0, "No space left on device", steps_lost=0, also="it is tried again; no temporary folder stays"
            ),
            "for good": Must(13, "No space left on device", also="after two; the older checkpoint is valid"),
        },
        (f"{FULL}test_a_disk_that_fills_up_in_a_save",),
    ),
    Row(
        26,
        "the disk fills up under the log",
        "a tmpfs, filled but for nothing while steps are logged",
        one(
            Must(0, steps_lost=0, also="the records are kept and all written later; the log is valid JSON at any time")
        ),
        (f"{FULL}test_a_log_that_finds_no_room_is_written_later",),
    ),
    Row(
        27,
        "death in the middle of a save or a resume",
        "SIGKILL before each system call, and in the middle of each write",
        one(Must(also="a valid checkpoint remains at each of at least 200 points, and a run goes on from it")),
        ("sft/test_crash_points.py::test_a_kill_at_any_system_call_loses_nothing",),
    ),
    Row(
        28,
        "a truncated file of a checkpoint",
        "truncate -s -100",
        {
            "the newest": Must(0, "has another size than its manifest", also=OLDER),
            "all": Must(14, "No checkpoint in … is as it was written"),
        },
        (f"{DISK}test_a_damaged_checkpoint",),
    ),
    Row(
        29,
        "a flipped bit",
        "one bit of a file; 1,000 random damages",
        {
            "the newest": Must(0, "has another sha256 than its manifest", also=OLDER),
            "1,000": Must(also="all are found: flips, truncations, zeroed tails, missing files, appended bytes"),
        },
        (f"{DISK}test_a_damaged_checkpoint", "sft/test_checkpoint_folder.py::test_every_random_damage_is_found"),
    ),
    Row(
        30,
        "a tail of zeros",
        "the last page of a file zeroed",
        one(Must(0, "has another sha256 than its manifest", also=OLDER)),
        (f"{DISK}test_a_damaged_checkpoint",),
    ),
    Row(
        31,
        "a missing or a foreign file",
        "rm of a file; a file more",
        {
            "missing": Must(0, "is missing", also=OLDER),
            "foreign": Must(0, "does not belong to the checkpoint; it is not read", steps_lost=0),
        },
        (f"{DISK}test_a_damaged_checkpoint", f"{DISK}test_a_foreign_file_and_a_wrong_hint"),
    ),
    Row(
        32,
        "a damaged manifest or LATEST",
        "emptied; garbage; the name of nothing",
        {
            "manifest": Must(0, "MANIFEST.json", also=OLDER),
            "LATEST": Must(0, "after step", steps_lost=0, also="nothing is read from it"),
        },
        (f"{DISK}test_a_damaged_checkpoint", f"{DISK}test_a_foreign_file_and_a_wrong_hint"),
    ),
    Row(
        33,
        "a torn log",
        "truncate -s -7; half a record more",
        one(Must(0, steps_lost=0, also="each step once, valid JSON")),
        (f"{DISK}test_a_torn_log",),
    ),
    Row(
        34,
        "a loss that is no number",
        "SFT_FAULT=nan@1:7",
        one(Must(15, "It arose on rank 1, from row", found_s=2, also="all ranks end; no checkpoint holds it")),
        (OTHERS,),
    ),
    Row(
        35,
        "a rank's weights change silently",
        "SFT_FAULT=perturb@1:7, a comparison every 4 steps",
        one(Must(15, "rank 1 diverged at step 8 or in the 3 before it", found_s=2)),
        (OTHERS,),
    ),
    Row(
        36,
        "a damaged line of data",
        "a byte of line 2 replaced",
        one(Must(3, ":2:…not valid JSON", also="file, line and column; before the first step")),
        (f"{DISK}test_a_damaged_line_of_data",),
    ),
    Row(
        37,
        "the data changed between two runs",
        "a line more",
        {
            "refused": Must(16, "data is …; it must be …: it has changed since", also="both hashes"),
            "accepted": Must(0, "from now on", steps_lost=0),
        },
        (f"{DISK}test_changed_data",),
    ),
)
