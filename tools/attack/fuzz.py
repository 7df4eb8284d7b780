"""Fuzzing: give the pack random invalid inputs, and look for faults that no input may cause.

    python dev.py fuzz [--count N | --minutes M] [--seed S] [--only NUMBER ...] [--workers W] [--out FOLDER] [--write]

Inputs for every node, drawn from its definition, and damaged files of every format that is read. They run in processes with limits
on memory and time. A finding is a crash, a hang, an error that was not written for users, an invalid result, a file outside
ComfyUI's folders, a changed input or a changed setting of the process. Each is saved in its own folder. Every input follows from
the seed and its number, so `--only` repeats one. --write puts the table into docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))
import page  # noqa: E402

CHILD = Path(__file__).with_name("fuzz_child.py")
START_S, HANG_S = 300.0, 300.0  # a child begins, an input ends within so much
MEMORY_GB = 6
LARGEST = 50e6  # bytes of a reproduction
KEPT = 3  # reproductions of one kind of finding


class Child:
    """A process that works through its share of the inputs.

    Args:
        command: without its first number, the number of inputs, the step and the memory.
    """

    def __init__(self, command: list[str], folder: Path):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONDONTWRITEBYTECODE": "1",
                       "TMPDIR": str(folder / "case" / "temp"), "HF_HUB_OFFLINE": "1"}
        (folder / "case" / "temp").mkdir(parents=True)
        (folder / "here").mkdir()
        self.folder, self.log = folder, folder.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=folder / "here")
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line.decode())
        self.lines.put(None)

    def next(self, seconds: float) -> dict[str, Any] | None:
        """The next line, None at the end. Raises queue.Empty if it takes longer."""
        line = self.lines.get(timeout=max(0.01, seconds))
        return None if line is None else json.loads(line)

    def end(self, patience: float = 0) -> int:
        """End the process, which may have that many seconds to end by itself; its exit code."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


class Fuzz:
    """A run of the attack; counts and findings."""

    def __init__(self, host: Path, seed: str, out: Path, child: Path = CHILD, hang_s: float = HANG_S):
        self.host, self.seed, self.out, self.child, self.hang_s = host, seed, out, child, hang_s
        self.counts: Counter[tuple[str, str]] = Counter()
        self.findings: list[dict[str, Any]] = []
        self._kinds: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        out.mkdir(parents=True, exist_ok=True)
        (out / "inputs.jsonl").write_text("", encoding="utf-8")

    def share(self, first: int, count: int, step: int, until: float) -> None:
        """Work through the numbers first, first + step, ... below count, with a new process after each that was lost."""
        with tempfile.TemporaryDirectory(prefix="framepainter-fuzz-") as place:
            while first < count and time.monotonic() < until:
                folder = Path(place, str(first))
                folder.mkdir()
                child = Child([sys.executable, str(self.child), str(self.host), str(folder), self.seed, str(first), str(count),
                               str(step), str(MEMORY_GB)], folder)
                try:
                    first = self._follow(child, first, step, until)
                finally:
                    child.end()
                shutil.rmtree(folder, ignore_errors=True)

    def _follow(self, child: Child, number: int, step: int, until: float) -> int:
        """Read a process's answers until it is done, lost, or time is up; the number to go on with."""
        begun, waited, heard, target = False, START_S, False, "(before the first input)"
        while time.monotonic() < until:
            fault = None
            try:
                said = child.next(min(waited, max(1.0, until - time.monotonic() + self.hang_s)))
            except queue.Empty:
                said, fault = None, f"hangs: no end after {waited:.0f} s, though it was cancelled"
            if said is None:
                code = child.end(20 if fault is None else 0)
                tail = child.log.read_text(encoding="utf-8", errors="replace")[-3000:] if child.log.exists() else ""
                if not begun and code == 0:
                    return sys.maxsize
                if not heard:
                    raise RuntimeError(f"the process that runs the inputs does not start (exit code {code}):\n{tail}")
                self._note(child, {"end": number, "target": target, "outcome": "lost", "trace": tail,
                                   "fault": fault or f"crashes the process (exit code {code})"})
                return number + step
            heard = True
            if "start" in said:
                number, begun, waited, target = said["start"], True, self.hang_s, "the attack itself"
            elif "target" in said and "end" not in said:
                target = said["target"]
            else:
                self._note(child, said)
                begun, number = False, number + step
        return number

    def _note(self, child: Child, said: dict[str, Any]) -> None:
        with self._lock, (self.out / "inputs.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(said) + "\n")
            fault = said.get("fault")
            self.counts[said["target"], "findings" if fault else said["outcome"]] += 1
            if not fault:
                return
            kind = (said["target"], re.sub(r"[\d.]+", "0", fault)[:80])
            self._kinds[kind] += 1
            self.findings.append(said)
            print(f"{said['end']}: {said['target']}: {fault[:300]}", flush=True)
            if self._kinds[kind] <= KEPT:
                self._keep(child, said)

    def _keep(self, child: Child, said: dict[str, Any]) -> None:
        name = re.sub(r"[^a-z0-9]+", "-", said["target"].lower()).strip("-")
        place = self.out / f"{self.seed}-{said['end']}-{name}"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        again = f"python dev.py fuzz --seed {self.seed} --only {said['end']}"
        (place / "case.json").write_text(json.dumps({"again": again, **said}, indent=1), encoding="utf-8")
        places = [child.folder / f"kept-{said['end']}"]
        if child.process.poll() is not None:  # nobody changes them any more
            places += [child.folder / "given", child.folder / "case"]
        source = next((p for p in places if p.is_dir()), None)
        if source is not None and sum(p.stat().st_size for p in source.rglob("*") if p.is_file()) < LARGEST:
            shutil.copytree(source, place / "files")


def report(fuzz: Fuzz) -> str:
    """The table: one line a node or format."""
    columns = ("result", "refused", "cancelled", "findings")
    names = sorted({target for target, _ in fuzz.counts})
    rows = [[name, sum(fuzz.counts[name, c] for c in columns), *(fuzz.counts[name, c] for c in columns)] for name in names]
    rows.append(["**all**", *(sum(row[i] for row in rows) for i in range(1, 6))])
    return page.table(["node or file", "inputs", "gave a result", "refused in words", "cancelled after 20 s", "findings"], rows)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dev.py fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", type=Path, default=os.environ.get("FRAMEPAINTER_HOST"), help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=10_000, help="inputs; 10000 if not given")
    parser.add_argument("--minutes", type=float, help="stop after so long, whatever the count")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of single inputs")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--out", type=Path, default=ROOT / ".host" / "fuzz", help="folder for findings")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    return parser


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    begun = time.monotonic()
    until = begun + options.minutes * 60 if options.minutes else float("inf")
    fuzz = Fuzz(Path(options.host).resolve(), options.seed, options.out.resolve())
    if options.only:
        for number in options.only:
            fuzz.share(number, number + 1, 1, until)
    else:
        with ThreadPoolExecutor(options.workers) as pool:
            list(pool.map(lambda first: fuzz.share(first, options.count, options.workers, until), range(options.workers)))
    total, found, minutes = sum(fuzz.counts.values()), len(fuzz.findings), (time.monotonic() - begun) / 60
    text = report(fuzz)
    print(f"\n{text}\n\n{total} inputs in {minutes:.1f} minutes, {found} findings" + (f", in {fuzz.out}" if found else ""))
    if options.write:
        page.write("fuzz", f"{page.stamp(fuzz.host)}: {total} inputs of seed {fuzz.seed}, {found} findings.\n\n{text}")
    return 1 if found or not total else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
