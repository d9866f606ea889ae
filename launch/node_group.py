"""The probes of several nodes, asked together and answered one by one; whoever does not answer is known by that."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launch.node_probe import MARK


class NodeGroup:
    """Probes that run, with what they have said."""

    def __init__(
        self,
        commands: Sequence[tuple[Sequence[str], Mapping[str, str]]],
        num_nodes: int,
        openings: Sequence[bytes] = (),
    ) -> None:
        """Starts the probes.

        Args:
            commands: argv and environment of each process that starts probes: one srun for all, or one per node.
            num_nodes: how many probes there will be.
            openings: what each process is told first, on its standard input.
        """
        self.num_nodes = num_nodes
        self._said: list[list[str]] = [[] for _ in commands]
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
            threading.Thread(target=self._read, args=(process, said), daemon=True)
            for process, said in zip(self._processes, self._said, strict=True)
        ]
        for reader in self._readers:
            reader.start()
        for process, opening in zip(self._processes, openings, strict=False):
            self._write(process, opening.decode("ascii"))

    @property
    def said(self) -> list[str]:
        """Lines that are no answers: what srun says, or ssh."""
        return [line for lines in self._said for line in lines]

    def said_by(self, node: int) -> list[str]:
        """Those of the process of one node; empty where one process starts them all."""
        return list(self._said[node]) if len(self._processes) == self.num_nodes else []

    def hello(self, timeout_s: float) -> dict[int, str]:
        """Node → its host name, of the nodes that have begun in time. Waits for none whose process has ended."""
        found: dict[int, str] = {}
        deadline = time.monotonic() + timeout_s
        while len(found) < self.num_nodes and (left := deadline - time.monotonic()) > 0:
            if not self._can_say_more(node for node in range(self.num_nodes) if node not in found):
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
            self._write(process, line)
        answers: dict[int, dict[str, Any]] = {}
        deadline = time.monotonic() + timeout_s
        while len(answers) < len(requests) and (left := deadline - time.monotonic()) > 0:
            if not self._can_say_more(node for node in requests if node not in answers):
                break
            try:
                node, message = self._messages.get(timeout=min(left, 0.2))
            except queue.Empty:
                continue
            if message.get("id") == self._number:
                answers[node] = message
        silent = {"error": f"no answer within {timeout_s:.0f} s"}
        return {node: answers.get(node, silent) for node in requests}

    def _can_say_more(self, missing: Iterable[int]) -> bool:
        """Whether one of these nodes may still answer, or an answer waits."""
        has_own = len(self._processes) == self.num_nodes
        readers = [self._readers[node] for node in missing] if has_own else self._readers
        return any(reader.is_alive() for reader in readers) or not self._messages.empty()

    @staticmethod
    def _write(process: subprocess.Popen[str], text: str) -> None:
        try:
            assert process.stdin is not None
            process.stdin.write(text)
            process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return

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

    def _read(self, process: subprocess.Popen[str], said: list[str]) -> None:
        parts: dict[int, str] = {}
        assert process.stdout is not None
        for line in process.stdout:
            words = line.rstrip("\n").split(" ", 3)
            if len(words) < 4 or words[0] != MARK or not words[1].isdigit():
                said.append(line.rstrip())
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
