"""What is wrong with which node, from what all of them have said. Pure: answers in, findings and text out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from launch.checks import Verdict
from launch.examination import Answers

SKEW_WARNING_S, SKEW_ERROR_S = 1.0, 10.0
"""Records of a run are put in order by time: a skew of seconds turns causes and victims round."""
SLOW_WARNING, SLOW_ERROR = 0.85, 0.6
"""Of the median of the other devices: all ranks wait for the slowest."""
SLOW_LINK_WARNING, SLOW_LINK_ERROR = 3.0, 10.0
"""Times the median of the pairs without the node."""
MUST_AGREE = ("python", "torch", "nvidia-nccl-cu12", "deepspeed", "transformers")
USED_MIB = 1024


@dataclass(frozen=True)
class Finding:
    """Something that is not as it must be, or may not go well."""

    nodes: tuple[int, ...]
    """Whom it blames; two for what is between them; none for what can't be laid on one."""
    what: str
    verdict: Verdict
    remedy: str


def diagnose(answers: Answers) -> list[Finding]:
    """All findings, the gravest first."""
    found = [
        *_silent(answers),
        *_clocks(answers),
        *_disks(answers),
        *_names(answers),
        *_ports(answers),
        *_versions(answers),
        *_gpus(answers),
        *_torch(answers),
        *_rates(answers),
        *_links(answers),
        *_together(answers),
    ]
    return sorted(found, key=lambda finding: finding.verdict != "error")


def wrong_nodes(findings: Sequence[Finding]) -> list[int]:
    """The nodes to do without, so that no error is left: those that errors blame; of a broken link the end that more of
    them share, or else the later node."""
    errors = [finding for finding in findings if finding.verdict == "error"]
    wrong = {finding.nodes[0] for finding in errors if len(finding.nodes) == 1}
    while links := [finding.nodes for finding in errors if len(finding.nodes) == 2 and not wrong & {*finding.nodes}]:
        counts = Counter(node for link in links for node in link)
        wrong.add(max(counts, key=lambda node: (counts[node], node)))
    return sorted(wrong)


def _sound(answers: Answers) -> dict[int, dict[str, Any]]:
    return {node: facts for node, facts in answers.facts.items() if "error" not in facts}


def _silent(answers: Answers) -> Iterator[Finding]:
    for node in range(len(answers.hosts)):
        if node not in answers.began:
            asked = f"`ssh {answers.hosts[node]} true`" if answers.is_by_ssh else "`sinfo -R`"
            remedy = f"Is it up ({asked}), is its network, do Python and the run directory's disk answer there?"
            said = "; ".join([line.strip() for line in answers.said_by.get(node, answers.said) if line.strip()][-3:])
            by = "ssh" if answers.is_by_ssh else "srun"
            yield Finding((node,), "does not answer", "error", remedy + (f" {by} says: {said}" if said else ""))
        elif "error" in answers.facts.get(node, {}):
            remedy = "Is a disk slow there, or its network cut?"
            yield Finding((node,), f"began and gave {answers.facts[node]['error']}", "error", remedy)


def _clocks(answers: Answers) -> Iterator[Finding]:
    if not answers.skew_s:
        return
    # That of whoever asks counts as one: with several nodes it can be the one that is wrong.
    reference = median([0.0, *(skew for skew, _ in answers.skew_s.values())]) if len(answers.skew_s) > 1 else 0.0
    for node, (skew, uncertainty) in sorted(answers.skew_s.items()):
        off = skew - reference
        if abs(off) - uncertainty > SKEW_WARNING_S:
            verdict: Verdict = "error" if abs(off) - uncertainty > SKEW_ERROR_S else "warning"
            word = "ahead" if off > 0 else "behind"
            yield Finding((node,), f"its clock is {abs(off):.1f} s {word}", verdict, "Start chrony or ntpd there.")


def _disks(answers: Answers) -> Iterator[Finding]:
    for node, facts in sorted(_sound(answers).items()):
        if facts["nonce"] != answers.nonce:
            what = "does not see a file that was just written in the folder of runs"
            yield Finding((node,), what, "error", "Mount that disk there, or choose a launch.runs_dir that all share.")


def _names(answers: Answers) -> Iterator[Finding]:
    sound = _sound(answers)
    own = {answers.hosts[node]: set(facts["interfaces"].values()) for node, facts in sound.items()}
    for node, facts in sorted(sound.items()):
        if not facts["address"]:
            yield Finding((node,), "has no address but loopback", "error", "Bring up its network interface.")
        for host, address in facts["resolved"].items():
            is_own = host == answers.hosts[node]
            if address is None:
                remedy = f"Add {host} to its /etc/hosts or to DNS. The launcher itself goes by addresses."
                yield Finding((node,), f"cannot resolve {host}", "warning", remedy)
            elif host in own and address not in own[host] and not (is_own and address.startswith("127.")):
                right = sound[answers.hosts.index(host)]["address"]
                remedy = f"Mend its /etc/hosts or DNS: {host} is {right}."
                yield Finding((node,), f"takes {host} for {address}", "error", remedy)
            elif host in own and address.startswith("127.") and not is_own:
                remedy = f"Mend its /etc/hosts: {host} is {sound[answers.hosts.index(host)]['address']}."
                yield Finding((node,), f"takes {host} for {address}, itself", "error", remedy)
    yield from _minority(answers, {node: str(facts["mtu"]) for node, facts in sound.items()}, "an MTU of", "warning")


def _ports(answers: Answers) -> Iterator[Finding]:
    for node, facts in sorted(_sound(answers).items()):
        wanted = {str(port) for port in answers.wanted_ports}
        for port, holder in facts["taken"].items():
            if port in wanted:
                remedy = "End that process, or use another port."
                yield Finding((node,), f"port {port} is taken by {holder}", "error", remedy)
        candidates = [str(port) for port in facts["candidates"]]
        busy = [port for port in candidates if port in facts["taken"]]
        if len(busy) == len(candidates):
            yield Finding((node,), f"all ports that the launcher tries are taken: {', '.join(busy)}", "error", "")
        elif busy and node == 0:
            holder = facts["taken"][busy[0]]
            remedy = "The launcher takes another one. Does something of an earlier job still run there?"
            yield Finding((node,), f"port {busy[0]} is taken by {holder}", "warning", remedy)


def _versions(answers: Answers) -> Iterator[Finding]:
    sound = _sound(answers)
    for name in MUST_AGREE:
        found = {
            node: str(facts["python"] if name == "python" else facts["packages"].get(name, "none"))
            for node, facts in sound.items()
        }
        yield from _minority(answers, found, name, "error")


def _minority(answers: Answers, found: Mapping[int, str], name: str, verdict: Verdict) -> Iterator[Finding]:
    """The nodes that differ from most; with two nodes, the second."""
    if len(set(found.values())) < 2:
        return
    usual = Counter(found.values()).most_common(1)[0][0]
    for node, value in sorted(found.items()):
        if value != usual:
            others = ", ".join([answers.hosts[other] for other in sorted(found) if found[other] == usual][:3])
            what = f"has {name} {value}; {others} has {usual}"
            yield Finding((node,), what, verdict, "Make them the same on all nodes.")


def _gpus(answers: Answers) -> Iterator[Finding]:
    sound = _sound(answers)
    for node, facts in sorted(sound.items()):
        for index, gpu in enumerate(facts["gpus"]):
            yield from _gpu(node, index, gpu)
        if facts["locked_memory_limited"]:
            what = "has InfiniBand, but locked memory is limited"
            daemon = "the ssh" if answers.is_by_ssh else "Slurm's"
            yield Finding((node,), what, "warning", f"Set `ulimit -l unlimited` for {daemon} daemon there.")
    yield from _minority(answers, {node: str(len(facts["gpus"])) for node, facts in sound.items()}, "GPUs:", "error")
    drivers = {node: facts["gpus"][0].get("driver", "none") for node, facts in sound.items() if facts["gpus"]}
    yield from _minority(answers, drivers, "the NVIDIA driver", "warning")


def _gpu(node: int, index: int, gpu: Mapping[str, str]) -> Iterator[Finding]:
    if "error" in gpu:
        yield Finding((node,), gpu["error"], "error", "Drain the node: its driver is not well.")
        return
    if gpu.get("ecc_errors", "0") not in ("0", ""):
        what = f"GPU {index} had {gpu['ecc_errors']} uncorrectable memory errors since the driver was loaded"
        yield Finding((node,), what, "error", "Drain the node; the GPU must be reset, or replaced.")
    if gpu.get("remap_failed") == "Yes":
        yield Finding(
            (node,), f"GPU {index} could not remap a row of its memory", "error", "Drain it: replace the GPU."
        )
    if gpu.get("slowdown") == "Active":
        heat = f" at {gpu['temperature_c']} °C" if "temperature_c" in gpu else ""
        what = f"GPU {index} is slowed down by its hardware{heat}"
        yield Finding((node,), what, "warning", "Look at cooling and power.")
    if gpu.get("used_mib", "0").isdigit() and int(gpu.get("used_mib", "0")) > USED_MIB:
        what = f"{int(gpu['used_mib']) / 1024:.1f} GiB of GPU {index} are in use"
        yield Finding((node,), what, "warning", "Does something of an earlier job still run there?")


def _torch(answers: Answers) -> Iterator[Finding]:
    for node, answer in sorted(answers.torch.items()):
        if "error" in answer:
            yield Finding((node,), f"torch does not start: {answer['error']}", "error", "Mend the environment there.")
        elif not answer.get("cuda") and _sound(answers)[node]["gpus"]:
            yield Finding((node,), "has GPUs, but torch sees none", "error", "Mend driver or torch build there.")


def _rates(answers: Answers) -> Iterator[Finding]:
    rates = {
        (node, index): rate
        for node, answer in sorted(answers.rates.items())
        for index, rate in enumerate(answer.get("flops_per_s", ()))
    }
    for node, answer in sorted(answers.rates.items()):
        if "error" in answer:
            yield Finding((node,), f"matrix products failed: {answer['error']}", "error", "Look at the device there.")
        elif _is_throttled(answer):
            verdict: Verdict = "error" if answer["throttled_share"] > 1 - SLOW_ERROR else "warning"
            what = f"its CPU is slow: a quota held it up for {answer['throttled_share']:.0%} of the time"
            yield Finding((node,), what, verdict, "Ask for more CPUs there, or have the limit of its cgroup lifted.")
    for (node, index), rate in rates.items():
        others = [other for key, other in rates.items() if key != (node, index)]
        share = rate / median(others) if others else 1.0
        if _is_throttled(answers.rates[node]):
            continue  # told with its cause
        if share < SLOW_WARNING:
            device = f"GPU {index}" if answers.rates[node]["device"] == "cuda" else "its CPU"
            what = f"{device} is slow: {rate / 1e12:.3g} TFLOP/s, {share:.0%} of the others"
            remedy = f"Load {answers.facts[node]['load']:.0f}; is another job there, a limit of power, or a CPU quota?"
            yield Finding((node,), what, "error" if share < SLOW_ERROR else "warning", remedy)


def _is_throttled(answer: Mapping[str, Any]) -> bool:
    return bool(answer["device"] == "cpu" and answer.get("throttled_share", 0.0) > 1 - SLOW_WARNING)


def _links(answers: Answers) -> Iterator[Finding]:
    failed = {pair: answer["error"] for pair, answer in answers.pairs.items() if "error" in answer}
    met = Counter(node for pair in answers.pairs for node in pair)
    lost = Counter(node for pair in failed for node in pair)
    cut_off = {node for node, count in lost.items() if count == met[node] > 1 and count == max(lost.values())}
    for node in sorted(cut_off):
        reason = next(error for pair, error in sorted(failed.items()) if node in pair)
        what = f"reaches none of the {met[node]} nodes that it was to meet ({reason})"
        yield Finding((node,), what, "error", "Look at its network, its firewall and its routes.")
    for pair, reason in sorted(failed.items()):
        if not cut_off & {*pair}:
            remedy = "Look at the network between them: cable, firewall, route. Ports above 10000 must be open."
            yield Finding(pair, f"do not reach each other ({reason})", "error", remedy)
    times = {pair: float(answer["seconds"]) for pair, answer in answers.pairs.items() if "error" not in answer}
    for node in sorted({node for pair in times for node in pair}):
        own = [seconds for pair, seconds in times.items() if node in pair]
        others = [seconds for pair, seconds in times.items() if node not in pair]
        factor = median(own) / median(others) if others else 1.0
        if factor > SLOW_LINK_WARNING:
            verdict: Verdict = "error" if factor > SLOW_LINK_ERROR else "warning"
            what = f"its all-reduce with another node takes {factor:.1f} times that of others"
            yield Finding((node,), what, verdict, "Look at its interface: speed, errors, the one that is chosen.")


def _together(answers: Answers) -> Iterator[Finding]:
    for backend, found in answers.together.items():
        reasons = Counter(answer["error"] for answer in found.values() if "error" in answer)
        if reasons:
            what = f"all nodes together: the all-reduce by {backend} failed ({reasons.most_common(1)[0][0]})"
            remedy = "Pairs were right: look at what all share, as NCCL_* variables, and at nodes that are slow."
            yield Finding((), what, "error", remedy)
