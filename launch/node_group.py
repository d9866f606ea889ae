"""The probes of several nodes, asked together and answered one by one; whoever does not answer is known by that."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from launch.node_probe import MARK


class NodeGroup:
    """Probes that run, with what they have said."""

    def __init__(self, commands: Sequence[tuple[Sequence[str], Mapping[str, str]]], num_nodes: int) -> None:
        """Starts the probes.

        Args:
            commands: argv and environment of each process that starts probes: one srun for all, or one per node.
            num_nodes: how many probes there will be.
        """
        self.num_nodes = num_nodes
        self.said: list[str] = []
        """Lines that are no answers: what srun says."""
        self._messages: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        self._number = 0
        self._processes = [
            subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environ),
                text=True,
                errors="replace",
                bufsize=1,
            )
            for argv, environ in commands
        ]
        self._readers = [
            threading.Thread(target=self._read, args=(process,), daemon=True) for process in self._processes
        ]
        for reader in self._readers:
            reader.start()

    def hello(self, timeout_s: float) -> dict[int, str]:
        """Node → its host name, of the nodes that have begun in time. Ends early where all processes have ended."""
        found: dict[int, str] = {}
        deadline = time.monotonic() + timeout_s
        while len(found) < self.num_nodes and (left := deadline - time.monotonic()) > 0:
            if not self._can_say_more():
                break
            try:
                node, message = self._messages.get(timeout=min(left, 0.2))
            except queue.Empty:
                continue
            if "hello" in message:
                found[node] = message["hello"]
        return found

    def ask(self, what: str, requests: Mapping[int, Mapping[str, Any]], timeout_s: float) -> dict[int, dict[str, Any]]:
        """Node → its answer, with `received_at` (time.time()); `{"error": …}` where there was none in time."""
        self._number += 1
        wanted = {str(node): request for node, request in requests.items()}
        line = json.dumps({"id": self._number, "do": what, "nodes": wanted}) + "\n"
        for process in self._processes:
            try:
                assert process.stdin is not None
                process.stdin.write(line)
                process.stdin.flush()
            except (BrokenPipeError, ValueError):
                continue
        answers: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + timeout_s
        while len(answers) < len(requests) and (left := deadline - time.monotonic()) > 0:
            if not self._can_say_more():
                break
            try:
                node, message = self._messages.get(timeout=min(left, 0.2))
            except queue.Empty:
                continue
            if message.get("id") == self._number:
                answers[node] = message
        silent = {"error": f"no answer within {timeout_s:.0f} s"}
        return {node: answers.get(node, silent) for node in requests}

    def _can_say_more(self) -> bool:
        return any(reader.is_alive() for reader in self._readers) or not self._messages.empty()

    def close(self, grace_s: float = 5.0) -> None:
        """Ends the probes."""
        self.ask("end", {}, 0.0)
        for process in self._processes:
            try:
                assert process.stdin is not None
                process.stdin.close()
            except (BrokenPipeError, OSError):
                pass
        deadline = time.monotonic() + grace_s
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.terminate()
                try:
                    process.wait(grace_s)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for process, reader in zip(self._processes, self._readers, strict=True):
            reader.join(max(1.0, grace_s))
            if process.stdout is not None and not reader.is_alive():
                process.stdout.close()

    def _read(self, process: subprocess.Popen[str]) -> None:
        parts: dict[int, str] = {}
        assert process.stdout is not None
        for line in process.stdout:
            words = line.rstrip("\n").split(" ", 3)
            if len(words) < 4 or words[0] != MARK or not words[1].isdigit():
                self.said.append(line.rstrip())
                continue
            node = int(words[1])
            parts[node] = parts.get(node, "") + words[3]
            if words[2] == "end":
                text = parts.pop(node)
                try:
                    message = json.loads(text)
                except ValueError:
                    print(f"warning: node {node} said what is no answer: {text[:100]}", file=sys.stderr)
                    continue
                self._messages.put((node, {**message, "received_at": time.time()}))
