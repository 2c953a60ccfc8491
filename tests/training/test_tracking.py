"""Trackers: what they give back == the records, a resumed run is the same run, and no failure reaches training."""

import json
import logging
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foldray.config.load import build_spec
from foldray.config.spec import RunSpec
from foldray.errors import UserError
from foldray.results.metrics import Record
from foldray.training import tracker_feed as module
from foldray.training import trackers
from foldray.training.tracker_feed import feed_trackers, scalars
from foldray.training.trackers import Point, Tracker, check_trackers

RUN_ID = "tiny-0123456789"
SECRET = "hunter2hunter2"


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trackers write below the working folder by default, and read the settings of whoever is at home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fresh_wandb() -> Iterator[None]:
    """W&B keeps the settings of its first use in a process."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


def spec_for(*trackers: str, workers: int = 2) -> RunSpec:
    return build_spec(
        {
            "name": "tiny",
            "corpus": {"path": "unused"},
            "model": {"family": "wav2vec2", "config": {"hidden_size": 32}},
            "fold": {"num_layers": 3, "depths": [3, 6]},
            "optim": {"steps": 12},
            "scale": {"workers": workers},
            "tracking": list(trackers),
        },
        "test",
    )


def step_record(step: int) -> Record:
    return {
        "step": step,
        "epoch": step // 4,
        "ctc": {"3": 2.5 / step, "6": 2.0 / step},
        "kl": {"3": 0.1 * step, "6": 0.0},
        "grad_norm": 1.0 + step,
        "lr": 1e-3,
        "progress": step / 12,
        "seconds": 0.5,
        "data_wait": 0.125,
        "checkpoint_seconds": 0.0,
        "audio_seconds": 30.0,
        "padding": 0.02,
        "memory": 123456789,
    }


def valid_record(step: int) -> Record:
    return {"step": step, "valid_ctc": {"3": 3.0 / step, "6": 2.0 / step}, "valid_wer": {"3": 0.5, "6": 1 / step}}


STEPS = [step_record(step) for step in range(1, 7)]
LATE = [*STEPS[:4], valid_record(2), *STEPS[4:], valid_record(4)]
"""Six steps, and two validations that come later than the steps behind theirs."""

RESUMED = [step_record(step) for step in range(5, 9)]
"""What an attempt that goes on behind step 4 reports."""


def track(spec: RunSpec, records: Iterable[Record], run: Path | str, first_step: int = 1) -> None:
    with feed_trackers(spec, RUN_ID, str(run), first_step) as pass_on:
        for record in records:
            pass_on(record)


def by_tag(records: list[Record]) -> dict[str, list[tuple[int, float]]]:
    """Points of every tag, in the order they came."""
    points: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for tag, value in scalars(record).items():
            points.setdefault(tag, []).append((record["step"], value))
    return points


def test_scalars_have_readable_tags() -> None:
    assert scalars(step_record(4)) == {
        "train/epoch": 1,
        "train/ctc/depth_3": 0.625,
        "train/ctc/depth_6": 0.5,
        "train/kl/depth_3": 0.4,
        "train/kl/depth_6": 0.0,
        "train/grad_norm": 5.0,
        "train/lr": 1e-3,
        "train/progress": 4 / 12,
        "speed/seconds_per_step": 0.5,
        "speed/audio_seconds_per_second": 60.0,
        "speed/data_wait_share": 0.25,
        "speed/checkpoint_seconds": 0.0,
        "speed/padding_share": 0.02,
        "speed/memory_bytes": 123456789,
    }
    assert scalars({**valid_record(4), "note": "no number", "depths": [3, 6], "best": None}) == {
        "valid/ctc/depth_3": 0.75,
        "valid/ctc/depth_6": 0.5,
        "valid/wer/depth_3": 0.5,
        "valid/wer/depth_6": 0.25,
    }


# --- TensorBoard -----------------------------------------------------------------------------------


def read_tensorboard(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def tensorboard_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = read_tensorboard(folder)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def as_float32(points: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    return {tag: [(step, float(np.float32(value))) for step, value in each] for tag, each in points.items()}


def test_tensorboard_gives_back_the_records(tmp_path: Path) -> None:
    spec = spec_for("tensorboard")
    track(spec, LATE, tmp_path / "run")
    folder = tmp_path / "run" / "tensorboard"
    assert tensorboard_points(folder) == as_float32(by_tag(LATE))
    (text,) = read_tensorboard(folder).Tensors("spec/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert json.loads(shown) == spec.model_dump(mode="json")


def test_tensorboard_drops_the_steps_that_are_taken_again(tmp_path: Path) -> None:
    spec = spec_for("tensorboard")
    track(spec, LATE, tmp_path / "run")
    track(spec, RESUMED, tmp_path / "run", first_step=5)
    kept = [record for record in LATE if record["step"] < 5]
    assert tensorboard_points(tmp_path / "run" / "tensorboard") == as_float32(by_tag([*kept, *RESUMED]))


def test_steps_that_a_restarted_worker_takes_again_are_told_once(tmp_path: Path) -> None:
    track(spec_for("tensorboard"), [*LATE, *RESUMED, valid_record(4), valid_record(3)], tmp_path / "run")
    told_once = [*LATE, *(record for record in RESUMED if record["step"] > 6), valid_record(3)]
    assert tensorboard_points(tmp_path / "run" / "tensorboard") == as_float32(by_tag(told_once))


def test_tensorboard_of_a_run_in_a_bucket_is_beside_the_caller(tmp_path: Path) -> None:
    track(spec_for("tensorboard"), STEPS, f"s3://bucket/runs/{RUN_ID}")
    assert tensorboard_points(tmp_path / "foldray-tensorboard" / RUN_ID) == as_float32(by_tag(STEPS))


# --- MLflow ----------------------------------------------------------------------------------------


def mlflow_run(folder: Path) -> tuple[Any, Any]:
    """The only run of the experiment in MLflow's default store, and a client of that store."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment
    (found,) = client.search_runs([experiment.experiment_id])
    return client, found


def mlflow_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    client, found = mlflow_run(folder)
    return {
        tag: [(metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, tag)]
        for tag in found.data.metrics
    }


@pytest.mark.main
def test_mlflow_gives_back_the_records(tmp_path: Path) -> None:
    track(spec_for("mlflow"), LATE, tmp_path / "run")
    assert mlflow_points(tmp_path) == by_tag(LATE)
    _, found = mlflow_run(tmp_path)
    assert (found.info.status, found.info.run_name) == ("FINISHED", RUN_ID)
    fields = {"optim.lr": "0.001", "fold.depths": "[3, 6]", "model.config.hidden_size": "32", "corpus.path": "unused"}
    assert fields.items() <= found.data.params.items()


@pytest.mark.main
def test_mlflow_goes_on_with_the_same_run(tmp_path: Path) -> None:
    track(spec_for("mlflow"), LATE, tmp_path / "run")
    first = mlflow_run(tmp_path)[1].info.run_id
    validations = [valid_record(4), valid_record(3)]
    track(spec_for("mlflow", workers=1), [*RESUMED, *validations], tmp_path / "run", first_step=5)
    assert mlflow_run(tmp_path)[1].info.run_id == first
    told_once = [*LATE, *(record for record in RESUMED if record["step"] > 6), valid_record(3)]
    assert mlflow_points(tmp_path) == by_tag(told_once)


@pytest.mark.main
def test_a_run_that_fails_is_marked_and_its_error_passes(tmp_path: Path) -> None:
    def reported() -> Iterator[Record]:
        yield STEPS[0]
        raise FloatingPointError

    with pytest.raises(FloatingPointError):
        track(spec_for("mlflow"), reported(), tmp_path / "run")
    assert mlflow_run(tmp_path)[1].info.status == "FAILED"
    assert mlflow_points(tmp_path) == by_tag(STEPS[:1])


# --- W&B -------------------------------------------------------------------------------------------


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run: a LevelDB log, in blocks of 32 KiB, behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at < len(data):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if at + 7 + length > len(data):
            return  # W&B's service is still writing
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def wandb_rows(file: Path) -> list[dict[str, Any]]:
    """The history rows, without W&B's own columns. Its service may still be writing when a run is finished: seen on a
    busy machine."""
    until = time.monotonic() + 20
    while not any(each.WhichOneof("record_type") == "exit" for each in wandb_records(file)):
        if time.monotonic() > until:
            break
        time.sleep(0.2)
    rows = []
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


@pytest.mark.main
@pytest.mark.usefixtures("fresh_wandb")
def test_wandb_gives_back_the_records_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers(spec_for("wandb"))
    track(spec_for("wandb"), LATE, tmp_path / "run")
    (first,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    track(spec_for("wandb", workers=1), RESUMED, tmp_path / "run", first_step=5)
    files = set(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    (second,) = files - {first}

    assert wandb_rows(first) == [{"step": record["step"], **scalars(record)} for record in LATE]
    assert wandb_rows(second) == [{"step": record["step"], **scalars(record)} for record in RESUMED]
    for file in files:
        (run,) = [record.run for record in wandb_records(file) if record.WhichOneof("record_type") == "run"]
        assert (run.run_id, run.project) == (RUN_ID, "foldray")
        config = {update.key: json.loads(update.value_json) for update in run.config.update}
        assert config["fold"]["depths"] == [3, 6]
        metrics = [record.metric for record in wandb_records(file) if record.WhichOneof("record_type") == "metric"]
        by_step = {metric.glob_name for metric in metrics if metric.step_metric == "step"}
        assert by_step == {"train/*", "valid/*", "speed/*"}


@pytest.mark.usefixtures("fresh_wandb")
def test_wandb_without_a_key_is_refused_before_training() -> None:
    with pytest.raises(UserError, match=r"tracking: wandb has no key; run `wandb login`.*WANDB_MODE=offline"):
        check_trackers(spec_for("wandb"))


@pytest.mark.usefixtures("fresh_wandb")
def test_wandb_with_a_key_that_is_none_is_refused_without_saying_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with pytest.raises(UserError, match="tracking: wandb refuses its key") as caught:
        check_trackers(spec_for("wandb"))
    assert SECRET not in str(caught.value)


# --- What is missing, away or slow -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_extra_is_one_line_with_its_mend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in trackers.MODULES[name]:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError) as caught:
        check_trackers(spec_for(name))
    assert str(caught.value) == f"tracking: {name} needs the extra '{name}': pip install 'foldray[{name}]'"


def test_a_folder_of_the_name_is_no_installed_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(trackers.MODULES, "wandb", ("some_tracker",))
    with pytest.raises(UserError, match="needs the extra 'wandb'"):
        check_trackers(spec_for("wandb"))


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys; import foldray.training.tracker_feed; "
        "print([name for name in ('torch', 'tensorboard', 'mlflow', 'wandb') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_server_that_is_away_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken:  # bound but not listening: whoever connects is refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:{SECRET}@127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        track(spec_for("mlflow", "tensorboard"), LATE, tmp_path / "run")
    (warning,) = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert warning.startswith("tracking: mlflow gets nothing more (")
    assert SECRET not in warning
    assert tensorboard_points(tmp_path / "run" / "tensorboard") == as_float32(by_tag(LATE))


@pytest.mark.parametrize("fails_in", ["start", "write", "close"])
def test_a_tracker_that_raises_is_one_warning(
    fails_in: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def reach(place: str) -> None:
        if place == fails_in:
            raise OSError("the disk is full")

    def start(_run: Any) -> Any:
        reach("start")
        return Tracker(lambda points: reach("write"), lambda ended_well: reach("close"))

    monkeypatch.setitem(trackers.STARTS, "tensorboard", start)
    with caplog.at_level(logging.WARNING), feed_trackers(spec_for("tensorboard"), RUN_ID, "run", 1) as pass_on:
        for record in LATE:
            pass_on(record)
            if fails_in != "close":
                wait_for_end("tracking-tensorboard")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("tracking: tensorboard gets nothing more (the disk is full)")


def wait_for_end(thread_name: str) -> None:
    for thread in threading.enumerate():
        if thread.name == thread_name:
            thread.join(timeout=10)


def test_training_does_not_wait_for_a_slow_tracker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answered = threading.Event()
    written: list[Point] = []

    def write(points: list[Point]) -> None:
        answered.wait()
        written.extend(points)

    def close(_ended_well: bool) -> None:
        raise OSError("nothing to say any more")

    monkeypatch.setattr(module, "LAST_SECONDS", 0.2)
    monkeypatch.setitem(trackers.STARTS, "mlflow", lambda run: Tracker(write, close))
    track(spec_for("mlflow"), LATE, "run")
    answered.set()
    wait_for_end("tracking-mlflow")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == "tracking: mlflow was not done after 0.2 s; the store has every metric"
    assert [(point.step, point.scalars) for point in written] == [(record["step"], scalars(record)) for record in LATE]
