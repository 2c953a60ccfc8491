"""Kill a worker, a raylet or the driver of a training run at random moments and compare the result with an undisturbed
run.

    python -m tests.support.chaos --kills 20 --seed 1 --out docs/CHAOS.md

A Ray cluster on this machine (a head without CPUs, nodes of one CPU each, one of them spare) trains a small model for
two epochs on two workers. Every kill gets a fresh store that holds only the prepared corpus. Results are appended to
`kills.jsonl` in the work folder: the same command resumes where it was stopped.
"""

import argparse
import json
import os
import pty
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from foldray.data.builtin import write_builtin_corpus
from foldray.results.metrics import read_metrics
from foldray.runtime.ray import end_half_started
from foldray.storage.layout import MANIFEST_FILE
from foldray.training.fencing import Attempt, newest_attempt
from foldray.training.run_folder import checkpoint_folders, is_finished, whole_checkpoints
from tests.support.hosts import PATIENCE, WITH_TESTS, wait_until
from tests.support.paths import PROJECT
from tests.support.ray_head import HASTE
from tests.support.training import MEASURED

VICTIMS = ("worker", "raylet", "driver")
EVERY = 4
NOTICE_SECONDS = 60
MINUTES = 4.6
RECIPE = [
    "an4", "name=chaos", "corpus.max_seconds=12", "corpus.valid_fraction=0.05", "batch.max_duration=12",
    "model.config.hidden_size=192", "model.config.intermediate_size=768", "optim.epochs=2",
    f"checkpoint.every_steps={EVERY}", "augment.from_epoch=0",
]  # fmt: skip
ENVIRONMENT = {
    **HASTE, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_V2_ENABLED": "1",
    # Says which process has which rank.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(PROJECT),
}  # fmt: skip


# --- The cluster -----------------------------------------------------------------------------------


class Machines:
    """A Ray cluster whose head has no CPUs; this process is connected to the head."""

    def __init__(self, nodes: int) -> None:
        import ray
        from ray.cluster_utils import Cluster

        self._ray = ray
        self.temporary = tempfile.mkdtemp(prefix="chaos-", dir="/tmp")  # short: it holds sockets
        head = {"num_cpus": 0, "temp_dir": self.temporary, "include_dashboard": False}
        self._cluster = again(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.nodes: list[Any] = []
        self.have(nodes)
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self) -> Any:
        """One more node of one CPU."""
        node = self._cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
        self.nodes.append(node)
        return node

    def have(self, number: int) -> None:
        """Add or remove nodes until there are `number`."""
        while len(self.nodes) < number:
            self.add()
        if len(self.nodes) > number:
            for node in self.nodes[number:]:
                self.remove(node)
            alive = lambda: sum(node["Alive"] for node in self._ray.nodes())  # noqa: E731
            wait_until(lambda: alive() == number + 1, "Ray's notice of nodes that are gone")

    def kill(self, node: Any) -> None:
        """SIGKILL of a node's raylet."""
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    def remove(self, node: Any) -> None:
        """SIGKILL of everything on a node, or of what is left of it."""
        self._cluster.remove_node(node, allow_graceful=False)
        self.nodes.remove(node)

    def drain(self, node: Any, seconds: float) -> None:
        """Announce that a node will be taken away, as a cloud does with a spot machine."""
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = int((time.time() + seconds) * 1000)
        accepted, why = GcsClient(address=self.address).drain_node(node.node_id, reason, "a test", deadline)
        if not accepted:
            raise RuntimeError(f"the node is not drained: {why}")

    def replace(self, node: Any) -> None:
        """Replace a killed node."""
        self.remove(node)
        self.add()

    def node_of(self, worker: Any) -> Any:
        return next(node for node in self.nodes if node.node_id == worker.node_id)

    def groups(self) -> list[list[Any]]:
        """The groups of workers of every run on this cluster, oldest first, each by rank: pid, node_id."""
        try:
            # The name is Ray's own: ray.train.v2._internal.state.state_actor.
            actor = self._ray.get_actor("train_v2_state_actor", namespace="_train_state_actor")
        except ValueError:
            return []
        runs = self._ray.get(actor.get_train_run_attempts.remote(), timeout=PATIENCE).values()
        groups = sorted((group for run in runs for group in run.values()), key=lambda group: group.start_time_ns)
        return [sorted(group.workers, key=lambda worker: worker.world_rank) for group in groups if group.workers]

    def close(self) -> None:
        self._ray.shutdown()
        self._cluster.shutdown()
        shutil.rmtree(self.temporary, ignore_errors=True)


def again(start: Callable[[], Any]) -> Any:
    """Start something in at most two tries: Ray gives a node 30 seconds, which a busy machine sometimes exceeds."""
    try:
        return start()
    except Exception as error:
        end_half_started(error)
        return start()


# --- A training ------------------------------------------------------------------------------------


class Training:
    """`python -m foldray train` on a terminal of its own, which is read for the step that it shows.

    `step`: the last one that it told of, 0 before the first; `tellings` counts what it told.
    """

    def __init__(self, machines: Machines, folder: Path, *arguments: str) -> None:
        self.step, self.tellings, self._shown = 0, 0, ""
        self._out = tempfile.TemporaryFile(mode="w+", dir=folder)  # noqa: SIM115
        self._log = (folder / "train.log").open("a")
        ours, theirs = pty.openpty()
        around = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        around |= {**ENVIRONMENT, "RAY_ADDRESS": machines.address, "COLUMNS": "200", "TERM": "xterm"}
        self.process = subprocess.Popen(
            [*WITH_TESTS, sys.executable, "-m", "foldray", "train", *arguments, "--json"],
            stdin=subprocess.DEVNULL, stdout=self._out, stderr=theirs, env=around, cwd=folder, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        threading.Thread(target=self._read, args=(ours,), daemon=True).start()

    def _read(self, terminal: int) -> None:
        rest = ""
        while True:
            try:
                read = os.read(terminal, 65536)
            except OSError:  # its other end is closed
                read = b""
            if not read:
                os.close(terminal)
                self._log.close()
                return
            text = rest + re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read.decode(errors="replace"))
            *lines, rest = re.split(r"[\r\n]+", text)
            for line in lines:
                self._hear(line)

    def _hear(self, line: str) -> None:
        found = re.search(r"step (\d+)  loss.*", line)
        if not found and "━" not in line:
            self._log.write(f"{line}\n")
            self._log.flush()
        elif found and found[0] != self._shown:
            self._shown, self.step = found[0], int(found[1])
            self.tellings += 1

    def wait_until(self, is_so: Callable[..., Any], what: str, pause: float = 0.002) -> None:
        """Wait until a condition holds; fail if the driver ends first."""
        until = time.monotonic() + PATIENCE
        while not is_so():
            if self.process.poll() is not None:
                raise Over(f"the driver ended (exit code {self.process.returncode}) before {what}")
            if time.monotonic() > until:
                raise RuntimeError(f"not in {PATIENCE:g} s: {what}")
            time.sleep(pause)

    def finish(self) -> dict[str, Any]:
        """The command's JSON output."""
        self.process.wait(timeout=PATIENCE)
        self._out.seek(0)
        said = self._out.read()
        if self.process.returncode:
            raise RuntimeError(f"the driver ended with exit code {self.process.returncode}: {said}")
        # Ray may say around it that a node was lost.
        value: dict[str, Any] = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
        return value

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Over(RuntimeError):  # noqa: N818
    """The training run ended before the event that was waited for."""


# --- Kills -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """What dies and when: in the middle (`moment`, 0 to 1) of a step, or as the upload after the step begins.

    A victim `node` is taken away with notice, as soon as there is a checkpoint of that step or behind it.
    """

    number: int
    victim: str
    rank: int
    step: int
    moment: float
    in_upload: bool


def draw_kill(number: int, seed: int, last: int) -> Kill:
    """The `number`-th kill, from 1; the same for the same seed. Victims take turns."""
    rng = random.Random(f"{seed} {number}")
    in_upload = rng.random() < 0.3
    step = rng.randint(1, last)
    if in_upload:
        step = rng.randrange(EVERY, last + 1, EVERY)
    # The first worker is the one that writes.
    rank = 0 if in_upload else rng.randrange(2)
    return Kill(number, VICTIMS[(number - 1) % 3], rank, step, rng.random(), in_upload)


@dataclass(frozen=True)
class Reference:
    """The undisturbed run: its folder, its corpora, its last step, seconds per step."""

    run: str
    store: Path
    arguments: list[str]
    step: int
    step_seconds: float

    def again_in(self, store: Path) -> tuple[list[str], str]:
        """A store that has only the prepared corpus: the arguments for the same run in it, and where it will be."""
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(self.store / "corpora", store / "corpora")
        return [*self.arguments, f"storage.root={store}"], str(store / "runs" / Path(self.run).name)


def make_reference(machines: Machines, work: Path, recipe: list[str], minutes: float) -> Reference:
    """Train without kills in `<work>/reference`, or reuse the run there."""
    voices = work / "voices"
    if not (voices / "test.jsonl").exists():
        shutil.rmtree(voices, ignore_errors=True)
        write_builtin_corpus(voices, train_minutes=minutes, test_minutes=0.2)
    store = work / "reference"
    store.mkdir(exist_ok=True)
    arguments = [*recipe, f"corpus.path={voices}"]
    trained = Training(machines, store, *arguments, f"storage.root={store}").finish()
    seconds = statistics.median(record["seconds"] for record in read_metrics(trained["run"]))
    return Reference(trained["run"], store, arguments, trained["step"], seconds)


def carry_out(kills: list[Kill], machines: Machines, reference: Reference, work: Path) -> list[dict[str, Any]]:
    """A fresh run with these kills, one after the other; a row of the table for each.

    Raises Over where the run was over before a moment came.
    """
    store = work / f"kill-{kills[0].number:02d}"
    command, run = reference.again_in(store)
    rows: list[dict[str, Any]] = []
    lost: list[Any] = []
    training = Training(machines, store, *command)
    try:
        training.wait_until(lambda: group_of(run), "the first workers", 0.05)
        for kill in kills:
            strike = _aim(kill, machines, training, run, lost)
            _wait_for_moment(kill, training, run, reference)
            killed, in_step = group_of(run), training.step + 1
            strike()
            died_at = time.monotonic()
            if kill.victim == "driver":
                training = Training(machines, store, *command)
            half = _wait_for_next(training, run, killed)
            told, group = training.tellings, group_of(run)
            with suppress(Over):  # killed behind the last step: there is no step left to tell of
                training.wait_until(lambda told=told, of=training: of.tellings > told, "a step after the kill", 0.02)
            seconds = round(time.monotonic() - died_at, 1)
            rows.append({**vars(kill), "in_step": in_step, "half": sorted(half), "group": group, "seconds": seconds})
        last = training.finish()["step"]
    finally:
        training.kill()
        for node in lost:
            machines.replace(node)
    different = differences(run, reference.run)
    for row in rows:
        firsts = [int(path.stem[-8:]) for path in (Path(run) / "metrics").glob(f"{row.pop('group')}-*.jsonl")]
        row |= {"resumed_from": min(firsts, default=last + 1) - 1, "different": different}
    if not different:
        shutil.rmtree(store)
    return rows


def group_of(run: str) -> Attempt | None:
    """The group of workers that owns a run; None where there was none since the command was given."""
    newest = newest_attempt(run)
    return newest if newest and newest.group else None


def _wait_for_next(training: Training, run: str, killed: Attempt | None) -> set[int]:
    """Until another group of workers owns the run; steps of the checkpoints that the last one left half."""
    half: set[int] = set()

    def is_there() -> bool:
        nonlocal half
        seen = half_steps(run)
        if group_of(run) not in (None, killed):
            return True
        half = seen  # the next group removes them
        return False

    training.wait_until(is_there, "the next workers", 0.02)
    return half


def _aim(kill: Kill, machines: Machines, training: Training, run: str, lost: list[Any]) -> Callable[[], None]:
    """The kill, ready to be done at once. A node whose raylet it kills goes into `lost`."""
    if kill.victim == "driver":
        return training.kill
    worker = machines.groups()[-1][kill.rank]
    if kill.victim == "worker":
        return lambda: os.kill(worker.pid, signal.SIGKILL)
    node = machines.node_of(worker)
    if kill.victim == "node":
        return lambda: _take_away(node, kill.step, machines, training, run)
    lost.append(node)
    return lambda: machines.kill(node)


def _take_away(node: Any, step: int, machines: Machines, training: Training, run: str) -> None:
    """Announce it as a cloud does, and remove the node when there is a checkpoint, which must be in time."""
    noticed = time.time()
    machines.drain(node, NOTICE_SECONDS)
    newest = lambda: whole_checkpoints(run)[-1]  # noqa: E731
    training.wait_until(lambda: whole_checkpoints(run) and newest().step >= step, "a checkpoint before the node goes")
    assert (Path(newest().uri) / MANIFEST_FILE).stat().st_mtime < noticed + NOTICE_SECONDS
    machines.remove(node)


def _wait_for_moment(kill: Kill, training: Training, run: str, reference: Reference) -> None:
    if kill.in_upload:
        folder = Path(run) / "checkpoints"
        training.wait_until(lambda: any(folder.glob(f"step-{kill.step:08d}-*")), "the upload", 0.001)
    else:
        training.wait_until(lambda: training.step >= kill.step - 1, "the step")
        time.sleep(kill.moment * reference.step_seconds)
    if is_finished(run):
        raise Over("the run was over before the kill")


def half_steps(run: str) -> set[int]:
    """Steps of checkpoints that are not whole."""
    whole = whole_checkpoints(run)
    return {found.step for found in checkpoint_folders(run) if found not in whole}


# --- What came out ---------------------------------------------------------------------------------


def differences(run: str, reference: str) -> list[str]:
    """The parts in which two finished runs differ; empty if they are bit-equal."""
    ours, theirs = whole_checkpoints(run)[-1], whole_checkpoints(reference)[-1]
    pairs = [(Path(run) / "model", Path(reference) / "model"), (Path(ours.uri), Path(theirs.uri))]
    found = [] if ours.step == theirs.step else [f"last checkpoint {ours.step}, not {theirs.step}"]
    for our, their in pairs:
        names = {path.name for folder in (our, their) for path in folder.glob("*.safetensors")}
        found += [f"{our.name}/{name}" for name in sorted(names) if not _same(our / name, their / name)]
    metrics, expected = (timeless(each) for each in (run, reference))
    if [record["step"] for record in metrics] != list(range(1, theirs.step + 1)):
        found.append("steps in the metrics")
    elif metrics != expected:
        found.append("metrics")
    return found


def _same(one: Path, other: Path) -> bool:
    if not (one.exists() and other.exists()):
        return False
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def timeless(run: str) -> list[dict[str, Any]]:
    """A run's metrics without those that measure the machine."""
    return [{k: v for k, v in record.items() if k not in MEASURED} for record in read_metrics(run)]


def table(rows: list[dict[str, Any]], command: str, reference: dict[str, Any], revision: str) -> str:
    """The results as Markdown."""
    equal = sum(not row["different"] for row in rows)
    lines = [
        "# Chaos",
        "",
        "```sh",
        command,
        "```",
        "",
        f"Two workers train for two epochs ({reference['step']} steps of {reference['step_seconds']:.2f} s, a "
        f"checkpoint every {EVERY} steps and at the end of an epoch) on a Ray cluster of one machine. In each run, one "
        "process gets SIGKILL at a random moment. After a killed driver, the command is run again; after a killed "
        "worker or raylet, training resumes by itself, with a lost node's worker on a spare node.",
        "",
        "- *Equal*: the final weights and the last checkpoint's weights and optimizer state are bit-equal, and the "
        "metrics hold every step once, with the same values.",
        "- *Incomplete*: the step of a checkpoint that the kill interrupted.",
        "- *Trains again after*: time until the driver reports the next step, on two cores.",
        "",
        "A worker briefly outlives its raylet and may write one more checkpoint. A run that finished before the moment "
        "of its kill is repeated and not counted.",
        "",
        f"**{equal} of {len(rows)} equal the undisturbed run**, at commit {revision}.",
        "",
        "| kill | victim | moment | in step | incomplete | resumed from | trains again after | equal |",
        "|---:|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        victim = row["victim"] if row["victim"] == "driver" else f"{row['victim']} of rank {row['rank']}"
        moment = "upload" if row["in_upload"] else f"{row['moment']:.0%} of the step"
        half = ", ".join(map(str, row["half"])) or "-"
        verdict = "yes" if not row["different"] else f"**no**: {', '.join(row['different'])}"
        cells = [row["number"], victim, moment, row["in_step"], half, row["resumed_from"], f"{row['seconds']:.1f} s"]
        lines.append(f"| {' | '.join(map(str, cells))} | {verdict} |")
    return "\n".join(lines) + "\n"


# --- The command -----------------------------------------------------------------------------------


@contextmanager
def cluster(nodes: int) -> Iterator[Machines]:
    """A cluster as a context manager."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    machines = None
    try:
        machines = Machines(nodes)
        yield machines
    finally:
        if machines:
            machines.close()
        os.environ.clear()
        os.environ.update(before)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill trainings and compare.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="Markdown file for the table")
    parser.add_argument(
        "--work", type=Path, help="folder for stores and results so far; default: one of this commit's and seed's own"
    )
    asked = parser.parse_args()
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.strip()
    work = asked.work or Path(tempfile.gettempdir()) / f"foldray-chaos-{revision}-{asked.seed}"
    work.mkdir(parents=True, exist_ok=True)
    log = work / "kills.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    with cluster(3) as machines:
        reference = make_reference(machines, work, RECIPE, MINUTES)
        for number in range(len(rows) + 1, asked.kills + 1):
            rows += _until_it_hits(draw_kill(number, asked.seed, reference.step), machines, reference, work)
            with log.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    command = f"python -m tests.support.chaos --kills {asked.kills} --seed {asked.seed} --out {asked.out}"
    asked.out.write_text(table(rows, command, vars(reference), revision))
    return int(any(row["different"] for row in rows))


def _until_it_hits(kill: Kill, machines: Machines, reference: Reference, work: Path) -> list[dict[str, Any]]:
    """A kill's row; a kill that missed its moment is repeated."""
    for _ in range(3):
        with suppress(Over):
            return carry_out([kill], machines, reference, work)
    raise RuntimeError(f"three times too late for {kill}")


if __name__ == "__main__":
    sys.exit(main())
