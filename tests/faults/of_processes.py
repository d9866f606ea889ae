"""Faults of processes, of the cluster and of its network: rows 1 to 23."""

from __future__ import annotations

from .requirement import Must, Row, one

LOCAL = "ranks/test_faults_of_runs.py::"
KILLS = "cluster/test_kills_on_slurm.py::"
SLURM = "cluster/test_faults_of_slurm.py::"
NETWORK = "cluster/test_faults_of_networks.py::"
GOING_ON = "cluster/test_going_on_slurm.py::"
OTHERS = f"{LOCAL}test_other_faults"
TWO_SAVES = 4
"""Steps, with a checkpoint every 2: the one that is being written is lost with its process."""
TWO_SAVES_ON_SLURM = 10
"""With one every 5."""

ROWS = (
    Row(
        1,
        "SIGKILL of a rank",
        "kill -9 of rank 1",
        {
            "local": Must(11, "rank 1 on … died (SIGKILL)", found_s=2, steps_lost=TWO_SAVES),
            "Slurm": Must(
                11,
                "rank 1 on n2 died (SIGKILL)",
                found_s=2,
                free_s=5,
                next_step_s=30,
                steps_lost=TWO_SAVES_ON_SLURM,
                also="goes on by its chain, to the losses and weights of an undisturbed run, to the last bit",
            ),
        },
        (f"{LOCAL}test_killed_rank", f"{KILLS}test_mode_26_a_killed_rank"),
    ),
    Row(
        2,
        "SIGKILL of rank 0, where the ranks' store is",
        "SFT_FAULT=kill@0:7",
        one(Must(11, "rank 0 on … died (SIGKILL)", found_s=2, also="the other rank ends with 11, not by a signal")),
        (OTHERS,),
    ),
    Row(
        3,
        "a crash in native code",
        "SFT_FAULT=segv@1:7, abort@1:7",
        {
            "SIGSEGV": Must(11, "rank 1 on … died (SIGSEGV)", found_s=2, also="the Python stack is in the rank's log"),
            "SIGABRT": Must(11, "rank 1 on … died (SIGABRT)", found_s=2, also="likewise"),
        },
        (OTHERS,),
    ),
    Row(
        4,
        "a rank is stopped (SIGSTOP)",
        "kill -STOP of rank 1",
        {
            "local": Must(12, "rank 1 hangs: it is stopped", also="both nodes' agents end with 12"),
            "Slurm": Must(12, "rank 1 hangs: it is stopped", found_s=10, free_s=20, also="both agents end with 12"),
        },
        (
            f"{LOCAL}test_stopped_rank_hangs",
            "cluster/test_hang_on_slurm.py::test_a_stopped_rank_is_found_and_both_nodes_are_free",
        ),
    ),
    Row(
        5,
        "a rank holds Python's lock for ever, or sleeps",
        "SFT_FAULT=lock_gil@1:7, hang@1:7",
        {
            "lock": Must(12, "rank 1 hangs: …", found_s=10, also="the stack is in the log"),
            "sleep": Must(12, "rank 1 hangs: it is in …faults.py", found_s=10, also="the stack is in the log"),
        },
        (OTHERS,),
    ),
    Row(
        6,
        "a Python exception on one rank",
        "SFT_FAULT=raise@1:7",
        one(Must(1, "InjectedFaultError: a fault on purpose", found_s=2)),
        (OTHERS,),
    ),
    Row(
        7,
        "one rank leaves early with 0",
        "SFT_FAULT=exit0@1:7",
        one(Must(11, "rank 1 exited 0 at step 7 of 5000", found_s=10, steps_lost=TWO_SAVES)),
        (f"{LOCAL}test_a_rank_that_leaves_early_with_0",),
    ),
    Row(
        8,
        "SIGTERM to one rank",
        "SFT_FAULT=term@1:7",
        one(Must(10, "stopped by SIGTERM, after step 7 of 5000", steps_lost=0)),
        (f"{LOCAL}test_a_rank_that_is_told_to_stop_takes_all_with_it_and_all_is_saved",),
    ),
    Row(
        9,
        "SIGTERM to one node's agent, which is submitit's task",
        "kill -TERM of the agent on n2",
        one(Must(10, "stopped by SIGTERM", free_s=3, steps_lost=0, also="within KillWait (5 s) less 2 s")),
        (f"{KILLS}test_a_signal_to_the_agent_of_one_node_saves",),
    ),
    Row(
        10,
        "SIGKILL of one node's agent",
        "kill -9 of the agent on n2",
        one(
            Must(
                11,
                "the agent of node 1 (n2) died",
                free_s=5,
                steps_lost=TWO_SAVES_ON_SLURM,
                also="its ranks die with it",
            )
        ),
        (f"{KILLS}test_a_killed_agent",),
    ),
    Row(
        11,
        "SIGUSR2 to all processes of the job",
        "scancel -s USR2 JOB; kill -USR2 of one agent",
        {
            "local": Must(10, "stopped by SIGUSR2", steps_lost=0),
            "Slurm": Must(10, "stopped by SIGUSR2", steps_lost=0, also="nothing is left on the nodes"),
        },
        (
            f"{LOCAL}test_a_signal_to_one_agent_saves_on_all_nodes",
            f"{KILLS}test_mode_12_a_user_signal_to_all_processes_saves",
        ),
    ),
    Row(
        12,
        "the job is cancelled",
        "scancel JOB of a singleton chain",
        {
            "scancel": Must(
                143, "CANCELLED", steps_lost=0, also="its successor is cancelled too, nothing is submitted"
            ),
            "launch cancel": Must(10, "stopped by cancelled", steps_lost=0),
        },
        (f"{GOING_ON}test_cancelled_runs_save_and_are_over_and_resume_goes_on", f"{LOCAL}test_cancel_saves"),
    ),
    Row(
        13,
        "the job is requeued",
        "scontrol requeue JOB",
        one(Must(0, "Slurm has requeued the job", steps_lost=0, also="attempt 1 goes on in the same directory")),
        (f"{GOING_ON}test_modes_14_15_stopped_and_failed_runs_go_on_and_nothing_is_done_twice",),
    ),
    Row(
        14,
        "the time limit, and preemption",
        "a job of one minute; a job of the urgent partition",
        {
            "time limit": Must(0, "attempt 0 ended with code 10", steps_lost=0, also="with saves of 12 s"),
            "preemption": Must(0, "attempt 0 ended with code 10", steps_lost=0, also="with saves of 12 s"),
            "save of 45 s": Must(
                0,
                "attempt 0 ended with code 10",
                steps_lost=0,
                also="SIGUSR1, a limit of ten minutes: it is not cut off",
            ),
        },
        (
            f"{GOING_ON}test_the_time_limit_and_a_preemption_lose_nothing",
            f"{SLURM}test_mode_13_a_slow_save_is_not_cut_off_where_there_is_time",
        ),
    ),
    Row(
        15,
        "a save slower than KillWait",
        "scontrol requeue during SFT_FAULT=slow30@0:100:save_part",
        one(Must(0, "after step 95", also="the checkpoint before it is used; the cut one is never a checkpoint")),
        (f"{SLURM}test_a_save_that_is_cut_off_loses_its_own_steps_alone",),
    ),
    Row(
        16,
        "a node is lost and lives on",
        "kill -9 of slurmd n2, where the whole job is",
        one(
            Must(
                16,
                "This process was taken for dead and another goes on",
                also="the run goes on elsewhere; the old writer commits nothing more; undisturbed losses and weights",
            )
        ),
        (f"{SLURM}test_mode_19_a_lost_node_that_lives_on_is_fenced",),
    ),
    Row(
        17,
        "slurmstepd is killed",
        "kill -9 of the step's slurmstepd on n2",
        one(
            Must(
                0,
                "attempt 0 ended with code 0",
                free_s=45,
                steps_lost=0,
                also="the run goes on to its end; srun, which is never told of it, is ended; nothing is left on n2",
            )
        ),
        (f"{SLURM}test_a_killed_slurmstepd",),
    ),
    Row(
        18,
        "the controller restarts",
        "kill -9 of slurmctld, and its start 10 s later",
        one(Must(0, "squeue", also="`status` says what it knows and why not more; the run does not notice")),
        (f"{SLURM}test_a_restart_of_the_controller_is_not_noticed",),
    ),
    Row(
        19,
        "the network is cut",
        "ip -netns n2 link set eth0 down",
        one(Must(11, "does not answer", found_s=20, also="names the host; the run goes on when it is back")),
        (f"{NETWORK}test_a_cut_network",),
    ),
    Row(
        20,
        "the network is away for 5 s",
        "link down, 5 s, link up",
        one(Must(0, "has not moved for", steps_lost=0, also="one attempt; undisturbed losses")),
        (f"{NETWORK}test_a_network_that_comes_back",),
    ),
    Row(
        21,
        "a slow network",
        "tc qdisc add dev eth0 root tbf rate 1mbit",
        one(Must(0, steps_lost=0, also="undisturbed losses")),
        (f"{NETWORK}test_a_slow_network",),
    ),
    Row(
        22,
        "a slow rank",
        "SFT_FAULT=slow@1:N:data in steps 5 to 30",
        one(Must(10, "rank 1 takes … times as long", also="in `status` too; it is not ended")),
        (f"{LOCAL}test_a_slow_rank_is_named",),
    ),
    Row(
        23,
        "lack of memory",
        "a memory cgroup of 3 GiB, SFT_FAULT=oom@1:7",
        one(Must(18, "cgroup oom_kill=1")),
        (f"{LOCAL}test_lack_of_memory",),
    ),
)
