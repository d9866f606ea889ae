"""Faults of submitting, meeting and going on: rows 38 to 54."""

from __future__ import annotations

from .requirement import Must, Row, one

DISK = "faults/test_state_on_disk.py::"
FULL = "faults/test_full_disks.py::"
GOING_ON = "launch/test_going_on.py::"
NETWORK = "cluster/test_faults_of_networks.py::"
DOUBT = "launch/test_sbatch_in_doubt.py::"

ROWS = (
    Row(
        38,
        "two submissions of one run",
        "20 at once",
        one(
            Must(
                2, "belongs to job", found_s=5, also="one wins and is unharmed; the others are no jobs, hence 2, not 16"
            )
        ),
        (f"{GOING_ON}test_of_twenty_submissions_one_wins",),
    ),
    Row(
        39,
        "concurrent resumes",
        "20 at once",
        one(Must(16, "by", also="one wins, the others name it")),
        (f"{GOING_ON}test_of_twenty_resumes_one_wins",),
    ),
    Row(
        40,
        "the lock of a dead process, or dated in the future",
        "kill -9 of the holder; a file of tomorrow",
        {
            "dead": Must(says="is gone", also="taken over, and said"),
            "dated tomorrow": Must(also="taken over"),
        },
        (
            "sft/test_fence.py::test_who_may_be_taken_over",
            "sft/test_fence.py::test_a_silent_holder_on_another_machine_is_taken_over",
        ),
    ),
    Row(
        41,
        "the run directory is read-only",
        "mount --bind, remount ro",
        {
            "at submission": Must(2, "must be writable", found_s=2, also="refused as a setting is: there is no job"),
            "at the start": Must(13, "cannot be written"),
            "in the middle": Must(13, "Read-only file system", also="the older checkpoint is valid"),
        },
        (f"{FULL}test_a_read_only_run_directory", f"{FULL}test_a_submission_to_a_read_only_folder"),
    ),
    Row(
        42,
        "the run directory is renamed in the middle",
        "mv",
        one(Must(13, "is gone", also="it is not made anew")),
        (f"{FULL}test_a_run_directory_that_is_moved_away",),
    ),
    Row(
        43,
        "a port is taken",
        "a listener on the first port of the job, on n1",
        one(Must(0, also="the next port is taken")),
        (f"{NETWORK}test_modes_3_4_a_taken_port",),
    ),
    Row(
        44,
        "a foreign store on the job's port, or a rank of another run",
        "ranks with the nonces of two runs at one address",
        one(Must(17, "nonce of rank 1 is another than rank 0's", also="the store listens on its address alone")),
        ("ranks/test_meeting_of_ranks.py::test_a_rank_of_another_run_is_refused",),
    ),
    Row(
        45,
        "a node's name leads to the wrong address",
        "127.0.1.1 for n1 in its /etc/hosts, as on Debian",
        one(Must(0, also="node 0 offers the address by which it reaches its peers")),
        (f"{NETWORK}test_mode_5_a_name_that_leads_to_the_loopback",),
    ),
    Row(
        46,
        "a node never starts",
        "kill -STOP of the agent on n2 at its start",
        one(Must(17, "1 of 2 nodes after 60 s: missing n2")),
        (f"{NETWORK}test_a_node_that_never_starts",),
    ),
    Row(
        47,
        "a clock that is an hour ahead",
        "time.time() of all Python processes on n2 shifted",
        one(
            Must(
                11,
                "rank 1 on n2 died (SIGKILL)",
                also="the cause is right; the run goes on, undisturbed losses and weights",
            )
        ),
        (f"{NETWORK}test_a_clock_that_is_an_hour_ahead",),
    ),
    Row(
        48,
        "another number of ranks",
        "2 → 1, 2 → 4",
        one(Must(also="the same trained tokens in each step, losses within 1e-5")),
        ("ranks/test_engines.py::test_a_checkpoint_is_taken_up_by_other_numbers_of_ranks_in_the_same_order",),
    ),
    Row(
        49,
        "a changed setting",
        "another learning rate, schedule, seed",
        {
            "refused": Must(2, "learning_rate", also="both values"),
            "accepted": Must(0, steps_lost=0),
        },
        (f"{DISK}test_a_changed_setting",),
    ),
    Row(
        50,
        "a loop of crashes",
        "code 12 in step 2 of each attempt",
        {
            "local": Must(93, "3 attempts in a row brought no newer checkpoint"),
            "Slurm": Must(93, "3 attempts in a row brought no newer checkpoint", also="nothing is left in the queue"),
        },
        (
            f"{GOING_ON}test_no_progress_ends_the_chain",
            "cluster/test_going_on_slurm.py::test_modes_14_15_stopped_and_failed_runs_go_on_and_nothing_is_done_twice",
        ),
    ),
    Row(
        51,
        "death while a checkpoint is loaded",
        "kill -9 of rank 1 before the first step of attempt 1",
        one(Must(0, "attempt 1 ended with code 11", also="undisturbed losses and weights; no restart is forgotten")),
        ("ranks/test_faults_while_resuming.py::test_death_while_a_checkpoint_is_loaded",),
    ),
    Row(
        52,
        "many random faults",
        "20 kills, stops and crashes at random steps and points",
        one(Must(0, also="undisturbed weights; each row once in an epoch")),
        ("benchmarks/test_goodput.py::test_twenty_random_faults_change_nothing",),
    ),
    Row(
        53,
        "the terminal is closed during a submission",
        "SIGHUP, SIGINT, SIGKILL between the job and its record",
        {
            "SIGHUP": Must(also="the record is complete"),
            "SIGKILL": Must(also="the next submission finds the job by its token, and submits nothing"),
        },
        (f"{DOUBT}test_the_terminal_is_closed_between_the_job_and_its_record",),
    ),
    Row(
        54,
        "sbatch fails, hangs, babbles, or takes the job and dies",
        "stand-ins for sbatch, over a real list of jobs",
        {
            "taken": Must(0, also="found by its token; submitted once"),
            "not taken": Must(2, also="nothing is left, and it may be tried again"),
        },
        (
            f"{DOUBT}test_a_job_that_was_taken_is_found",
            f"{DOUBT}test_a_job_that_was_not_taken_leaves_nothing_and_is_tried_again",
        ),
    ),
)
