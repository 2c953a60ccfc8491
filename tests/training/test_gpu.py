"""What only a GPU shows: NCCL, CTC's other kernels, bfloat16, compiled shapes, memory, FSDP2. `make gpu` runs it.

Not bit for bit: CTC adds its gradients up on a GPU in the order that threads arrive.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from foldray.config.corpus import SAMPLE_RATE
from foldray.config.recipes import load_recipe, recipe_names
from foldray.data.epoch import plan_scoring
from foldray.data.manifest import Manifest, read_index
from foldray.data.stream import BatchLoader
from foldray.folding.batchnorm import Renorm
from foldray.folding.loss import StepCounts, joint_loss
from foldray.models.fold import stack_of
from foldray.models.save_load import save_model
from foldray.models.stock import write_random_checkpoint
from foldray.results.metrics import Record, read_metrics
from foldray.stages.evaluate import evaluate_stage
from foldray.training import state
from foldray.training.checkpoint import read_checkpoint
from foldray.training.context import LoopHooks, WorkerContext
from foldray.training.job import TrainJob
from foldray.training.loop import train_model
from foldray.training.objective import Objective
from foldray.training.run_folder import whole_checkpoints
from foldray.training.state import build_model
from foldray.training.step import autocast_dtype
from foldray.training.validation import validate_checkpoint
from foldray.transcription.recogniser import Recogniser
from tests.support.commands import finish, foldray
from tests.support.ports import free_port
from tests.support.training import TRAINED_FAMILIES, job_for, killed_at, with_fields

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU on this machine"),
]
GPU = torch.device("cuda", 0)
STILL = [f"model.config.{name}=0" for name in ("dropout", "activation_dropout", "attention_dropout")]
"""Dropout draws other numbers on a GPU."""


@pytest.fixture(autouse=True)
def whole_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 means float32: convolutions on a GPU round their factors to TF32 by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def assert_near(ours: list[Record], theirs: list[Record], tolerance: float) -> None:
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for part in ("ctc", "attention", "grad_norm"):
            assert one.get(part, {}) == pytest.approx(other.get(part, {}), rel=tolerance), one["step"]


# --- NCCL and FSDP2 --------------------------------------------------------------------------------


def on_every_gpu(function: Any, *arguments: Any) -> None:
    """Run `function(worker, *arguments)` in up to two processes that meet over NCCL, each with a GPU."""
    world = min(2, torch.cuda.device_count())
    address = f"tcp://127.0.0.1:{free_port()}"
    torch.multiprocessing.spawn(_meet, (world, address, function, arguments), nprocs=world)


def _meet(rank: int, world: int, address: str, function: Any, arguments: tuple[Any, ...]) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)  # as Ray Train does
    torch.backends.cudnn.allow_tf32 = False
    dist.init_process_group("nccl", init_method=address, rank=rank, world_size=world)
    function(WorkerContext(rank, world, device), *arguments)
    dist.destroy_process_group()


def _exchange(worker: WorkerContext) -> None:
    numbers = torch.arange(3, device=worker.device)
    dist.all_reduce(numbers)
    dist.broadcast(numbers, src=0)
    assert numbers.tolist() == [0, worker.world, 2 * worker.world]
    assert worker.broadcast([7 + worker.rank, 2**40]) == [7, 2**40]
    assert worker.count(worker.rank == 0) == 1


def test_nccl_starts_and_workers_hear_each_other() -> None:
    on_every_gpu(_exchange)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_workers_over_nccl_equal_one_process_on_cpus(
    strategy: str, prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    """With one GPU, DDP has no one to talk to; FSDP2 then shards over one worker."""
    fields = [*STILL, f"scale.strategy={strategy}", "optim.ema=0.5"]
    alone, together = (with_fields(job_for("parakeet", prepared, tmp_path / name, steps=5), *fields) for name in "ab")
    train_model(alone, WorkerContext())
    on_every_gpu(_train, together)
    assert_near(read_metrics(together.run), read_metrics(alone.run), 1e-3)
    # A checkpoint of many GPUs is one like any other: it goes on without any.
    longer = with_fields(together, "optim.steps=7")
    train_model(longer, WorkerContext())
    assert [record["step"] for record in read_metrics(longer.run)] == list(range(1, 8))


def _train(worker: WorkerContext, job: TrainJob) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if worker.world == 1 and job.spec.scale.strategy == "fsdp":
            patch.setattr(state, "shard", _shard_over_one)
        train_model(job, worker)


def _shard_over_one(model: Any, worker: WorkerContext, _scale: Any) -> None:
    mesh = init_device_mesh(worker.device.type, (1,))
    for block in stack_of(model).physical_layers():
        fully_shard(block, mesh=mesh, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


# --- Loss and precision ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_joint_loss_is_that_of_a_cpu(dtype: torch.dtype) -> None:
    """Over 256 frames and labels, utterances without a label, and one that has more labels than frames."""
    draw = torch.Generator().manual_seed(0)
    logits_PBTV = torch.randn(2, 4, 700, 32, generator=draw).to(dtype)
    labels_BU = torch.randint(1, 32, (4, 300), generator=draw)
    frames_B, num_labels_B = torch.tensor([700, 650, 40, 10]), torch.tensor([300, 7, 0, 30])
    counts = StepCounts(int(num_labels_B.sum()), int(frames_B.sum()), 4)
    results = []
    for device in (torch.device("cpu"), GPU):
        leaf = logits_PBTV.to(device, copy=True).requires_grad_()
        lengths = [each.to(device) for each in (frames_B, labels_BU, num_labels_B)]
        loss = joint_loss(leaf, *lengths, counts, alpha=0.5, beta=0.3, temperature=2.0)
        loss.total.backward()
        assert leaf.grad is not None
        results.append([loss.total.detach().cpu(), loss.task_P.cpu(), loss.kl_P.cpu(), leaf.grad.float().cpu()])
    for ours, theirs in zip(*results, strict=True):
        assert torch.isfinite(theirs).all()
        # Gradients come back in the precision of the logits.
        # With a loss in the thousands, float32 rounds alpha and beta to 2e-4: a CPU itself is 3e-6 from float64.
        torch.testing.assert_close(theirs, ours, rtol=1e-4 if dtype == torch.float32 else 1e-2, atol=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_steps_are_those_of_a_cpu_in_float32(
    precision: str, tolerance: float, prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    job = with_fields(job_for("parakeet", prepared, tmp_path / "cpu", steps=6), *STILL)
    ours = with_fields(job_for("parakeet", prepared, tmp_path / "gpu", steps=6), *STILL, f"precision={precision}")
    train_model(job, WorkerContext())
    train_model(ours, WorkerContext(device=GPU))
    assert_near(read_metrics(ours.run), read_metrics(job.run), tolerance)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", TRAINED_FAMILIES)
def test_every_kind_of_family_trains_scores_and_resumes(
    name: str, precision: str, prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    """Private parts, a moving average, hidden states and depths drawn at random on the way."""
    fields = [
        f"precision={precision}", "fold.private=norms+lora", "fold.lora_rank=4", "loss.hidden=0.1", "loss.sampled=1",
        "optim.ema=0.5",
    ]  # fmt: skip
    whole, cut = (with_fields(job_for(name, prepared, tmp_path / part, steps=7), *fields) for part in ("whole", "cut"))
    train_model(whole, WorkerContext(device=GPU))
    killed_at(cut, 5, worker=WorkerContext(device=GPU))
    resumed = train_model(cut, WorkerContext(device=GPU))
    assert resumed.resumed_from_step == 3
    assert_near(read_metrics(cut.run), read_metrics(whole.run), 1e-2 if precision == "float32" else 0.1)
    saved = read_checkpoint(whole_checkpoints(cut.run)[-1].uri)
    tensors = [*saved.optimizer.values(), *saved.averaged.values(), *saved.model.state_dict().values()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    newest = whole_checkpoints(cut.run)[-1]
    scores = [
        validate_checkpoint(cut.run, newest.step, newest.uri, cut.corpus, 12.0, device) for device in ("cpu", "cuda")
    ]
    assert scores[1]["valid_ctc"] == pytest.approx(scores[0]["valid_ctc"], rel=1e-3)


def test_a_model_is_scored_and_run_on_a_gpu_as_on_a_cpu(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    job = with_fields(job_for("parakeet", prepared, tmp_path, steps=6), *STILL)
    trained = train_model(job, WorkerContext(device=GPU)).model
    folder, depth = str(tmp_path / "model"), job.spec.fold.depths[-1]
    save_model(trained.cpu(), folder, prepared[1].tokenizer)
    rows, paths = [], []
    noise_T = torch.randn(3 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0)).mul(0.1).numpy()
    for device in ("cpu", "cuda"):
        rows.append(evaluate_stage(folder, str(tmp_path / "store"), prepared[0], device=device)["rows"])
        paths += Recogniser(folder, device=device).frame_paths([noise_T], depth)
    assert [(row["device"], row["depth"]) for row in rows[1]] == [("cuda:0", row["depth"]) for row in rows[0]]
    # Two tokens of equal probability may fall either way.
    assert [row["cer"] for row in rows[1]] == pytest.approx([row["cer"] for row in rows[0]], abs=0.01)
    assert paths[1].probabilities_T == pytest.approx(paths[0].probabilities_T, rel=1e-3)


# --- Shapes and memory -----------------------------------------------------------------------------


@pytest.mark.parametrize("private", ["none", "norms"])
def test_no_bucket_of_lengths_is_compiled_anew(private: str, prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    """What the first epochs did not compile, later ones, with other lengths, don't either."""
    torch._dynamo.reset()
    counters.clear()
    fields = ["scale.compile=true", f"fold.private={private}", "batch.max_duration=12", "checkpoint.every_steps=100"]
    job = with_fields(job_for("parakeet", prepared, tmp_path, epochs=6, per_step=1), *fields)
    compiled: dict[int, int] = {}

    def count(record: Record) -> None:
        compiled[record["epoch"]] = counters["stats"]["unique_graphs"]

    train_model(job, WorkerContext(device=GPU), LoopHooks(count))
    print(f"private={private}: graphs compiled by the end of each epoch: {compiled}")
    assert compiled[0] > 0
    assert compiled[5] == compiled[1]


def test_the_longest_batch_comes_first_and_takes_the_most_memory(
    prepared: tuple[str, Manifest], tmp_path: Path
) -> None:
    job = with_fields(job_for("parakeet", prepared, tmp_path, epochs=2), "batch.longest_first=true")
    torch.cuda.reset_peak_memory_stats(GPU)
    trained = train_model(job, WorkerContext(device=GPU))
    held = [record["memory"] for record in read_metrics(job.run)]
    moments = 2 * sum(4 * parameter.numel() for parameter in trained.model.parameters())
    print(f"memory after the first step and at the end: {held[0] / 2**20:.1f} and {held[-1] / 2**20:.1f} MiB")
    # AdamW makes its moments with the first update.
    assert held[-1] <= 1.25 * (held[0] + moments)  # several short clips keep up to 1.11 times what one long clip does


@pytest.mark.parametrize("name", recipe_names())
def test_a_full_batch_of_each_recipe_fits(name: str, prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    """One step in the recipe's precision over micro-batches of its full length, made of noise; tells its memory."""
    spec = load_recipe(name, ["corpus.path=unused", "optim.epochs=null", "optim.steps=1"])
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"checkpoint": None})})
    job = TrainJob(spec, str(tmp_path / "run"), prepared[0], str(tmp_path / "init"))
    tokenizer = prepared[1].tokenizer
    decoder = spec.planned_model().decoder
    layers = spec.fold.num_layers, decoder.num_layers if decoder else None
    write_random_checkpoint(spec.model, layers[0], tokenizer, 0, Path(job.init), layers[1])
    model = build_model(job, tokenizer)[0].to(GPU).train()
    index = read_index(*prepared, "train")
    loader = BatchLoader(index, model, tokenizer, None, 0)
    rows = loader.read(plan_scoring(index, 1.0)[0][:1])
    seconds = min(spec.corpus.max_seconds, spec.batch.max_duration)
    count = max(1, int(spec.batch.max_duration // seconds))
    noise = torch.randn(int(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0)) * 0.1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "_samples", lambda *_: noise.numpy())
        batch = loader.collate(rows * count, epoch=0).to(GPU)
    torch.cuda.reset_peak_memory_stats(GPU)
    objective, dtype = Objective(spec, model), autocast_dtype(spec, GPU)
    counts = StepCounts(int(batch.num_labels_B.sum()), int(batch.frames_B.sum()), count)
    renorm = Renorm(model, GPU)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(2):
        with renorm.observing(batch.frames_B, 1.0):
            with torch.autocast("cuda", dtype, enabled=dtype is not None):
                output = model(**batch.inputs)
            objective(output, batch, counts, 0.5)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    peak, total = torch.cuda.max_memory_allocated(GPU), torch.cuda.get_device_properties(GPU).total_memory
    print(f"{name}: {count} x {seconds:g} s, {dtype or torch.float32}: {peak / 2**30:.2f} of {total / 2**30:.1f} GiB")
    # An out-of-memory error is what fails here; a recipe should leave room for what else a GPU holds, too.
    assert peak < 0.9 * total


# --- The main job ----------------------------------------------------------------------------------


def test_foldray_run_trains_two_hundred_steps_and_the_same_command_has_nothing_left_to_do(
    own_corpus: Path, tmp_path: Path
) -> None:
    workers = min(2, torch.cuda.device_count())
    arguments = [
        "an4", f"corpus.path={own_corpus}", f"storage.root={tmp_path}", "corpus.max_seconds=20",
        "batch.max_duration=20", "optim.epochs=null", "optim.steps=200", "valid.every_steps=50",
        "scale.use_gpu=true", f"scale.workers={workers}", "precision=auto",
    ]  # fmt: skip
    result = finish(foldray("run", *arguments, "--json"))
    metrics = read_metrics(str(tmp_path / "runs" / result["run_id"]))
    steps = [record for record in metrics if "progress" in record]
    assert [record["step"] for record in steps] == list(range(1, 201))
    assert [record["step"] for record in metrics if "valid_wer" in record] == [50, 100, 150, 200]
    for depth in steps[0]["ctc"]:
        first, last = (sum(record["ctc"][depth] for record in part) / 5 for part in (steps[:5], steps[-5:]))
        assert last < 0.8 * first, f"depth {depth}"
    seconds, heard = (sum(record[key] for record in steps[20:]) for key in ("seconds", "audio_seconds"))
    waited = sum(record["data_wait"] for record in steps[20:]) / seconds
    print(f"{workers} GPUs: {heard / seconds:.0f} s of audio a second, {waited:.0%} of the time waiting for batches")
    assert finish(foldray("run", *arguments, "--json")) == result


def test_validation_on_the_gpu_of_the_workers_is_refused(own_corpus: Path, tmp_path: Path) -> None:
    arguments = [
        "an4", f"corpus.path={own_corpus}", f"storage.root={tmp_path}", "corpus.max_seconds=20",
        "batch.max_duration=20", "scale.use_gpu=true", f"scale.workers={torch.cuda.device_count()}",
        "scale.validation_resources={GPU: 1}",
    ]  # fmt: skip
    process = foldray("train", *arguments)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "scale.use_gpu: this machine offers" in err


def test_a_killed_job_on_a_gpu_resumes_on_cpus(prepared: tuple[str, Manifest], tmp_path: Path) -> None:
    job = with_fields(job_for("parakeet", prepared, tmp_path, steps=6), *STILL)
    train_model(job, WorkerContext(device=GPU))
    again = replace(with_fields(job, "optim.steps=9"), submission=2)
    assert train_model(again, WorkerContext()).resumed_from_step == 6
    assert [record["step"] for record in read_metrics(job.run)] == list(range(1, 10))
