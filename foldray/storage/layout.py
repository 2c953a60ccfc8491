"""The layout of a store: the only place that knows the names of its files and folders.

    ROOT/corpora/<corpus id>/{manifest.json, index.parquet, shards/*.parquet, quarantine.parquet}
    ROOT/runs/<run id>/{spec.json, run.json, attempts/, init/, checkpoints/, metrics/, model/}
    ROOT/searches/<search id>/{search.json, attempts/, claims/, trials/}
    ROOT/transcripts/<id>/{plan.parquet, shards/part-*.{parquet,jsonl}, corpus/, manifest.json}
    ROOT/results/*.parquet, ROOT/hypotheses/*.parquet

The classes compute URIs and parse them. They neither read nor write. A name that may come from a file (a run's id, a
shard) must be below its folder; others raise UserError. The file is long so that no name of the layout
is written anywhere else.

Example:
    >>> run = Store("s3://bucket/store").run("an4-1a2b3c4d5e")
    >>> run.spec
    's3://bucket/store/runs/an4-1a2b3c4d5e/spec.json'
    >>> run.store
    Store(root='s3://bucket/store')
"""

import re
from dataclasses import dataclass

from foldray.storage.uri import absolute, inside, join, split

# --- Names of files --------------------------------------------------------------------------------

MANIFEST_FILE = "manifest.json"
"""Of a prepared corpus and of a checkpoint. It is written last, so a folder that has one is whole."""
INDEX_FILE = "index.parquet"
QUARANTINE_FILE = "quarantine.parquet"

FOLD_FILE = "fold.json"
"""The fold plan. It is written last, so a model folder that has one is whole."""
CONFIG_FILE = "config.json"
"""The stock configuration. It is written last in folders of stock models."""
STOCK_FILE = "model.safetensors"
PRIVATE_FILE = "private.safetensors"
INT8_FILE = "int8.safetensors"
"""Replaces the weights and the private parts in an int8 export."""
ONNX_FILE = "model.onnx"
README_FILE = "README.md"
"""How to run an export for another runtime. It is written last in its folder."""
VOCABULARY_FILE = "vocab.json"
SUBWORDS_FILE = "subwords.json"
STOCK_TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_SETTINGS_FILE = "tokenizer_config.json"
GENERATION_FILE = "generation_config.json"
EXPORT_FILE = "export.json"
"""In an exported folder: the provenance of the run that the model came from."""

EXPORTED_FILES = (
    CONFIG_FILE, FOLD_FILE, STOCK_FILE, PRIVATE_FILE, INT8_FILE, GENERATION_FILE, EXPORT_FILE, VOCABULARY_FILE,
    SUBWORDS_FILE, STOCK_TOKENIZER_FILE, TOKENIZER_SETTINGS_FILE, "preprocessor_config.json", "processor_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
"""What an exported fold may have."""

STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
TRAINED_FILE = "trained.safetensors"
TRAINING_FILES = (OPTIMIZER_FILE, TRAINED_FILE)
"""The tensors of a checkpoint that are not part of its model: the optimizer's state and, where the model is an
average, the weights that training continues with."""

AUTO_FILE = "auto.json"
"""In a model folder: the threshold of `--depth auto`, and the curve it was chosen from."""

SEED_FILE = "seed.json"
"""How far each depth of a run was from its checkpoint before training."""


# --- Folders ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelFolder:
    """A saved model: the final model of a run, a checkpoint, an export or a stock checkpoint."""

    uri: str

    def file(self, name: str) -> str:
        """A file of the folder."""
        return inside(self.uri, name)

    @property
    def auto(self) -> str:
        """The calibration of `--depth auto`."""
        return self.file(AUTO_FILE)

    @property
    def fold(self) -> str:
        """The fold plan; present in every whole foldable model."""
        return self.file(FOLD_FILE)

    @property
    def export(self) -> str:
        """Provenance of an exported model."""
        return self.file(EXPORT_FILE)


@dataclass(frozen=True)
class CheckpointFolder(ModelFolder):
    """A model folder that also holds what training resumes from: step-<step>-<attempt>."""

    @property
    def manifest(self) -> str:
        """Sizes and checksums of the other files; written last."""
        return self.file(MANIFEST_FILE)

    @property
    def state(self) -> str:
        """The file with the position of the training loop: epoch and step."""
        return self.file(STATE_FILE)

    @property
    def step(self) -> int | None:
        """The optimizer step, from the folder's name; None where the folder is not a checkpoint of a run."""
        parent, name = split(self.uri)
        parsed = parse_checkpoint(name)
        return parsed[0] if parsed and split(parent)[1] == "checkpoints" else None


def parse_checkpoint(name: str) -> tuple[int, str] | None:
    """Step and attempt of a checkpoint's folder name; None for any other name."""
    found = re.fullmatch(r"step-(\d+)-(\d+-\d+)", name)
    return (int(found[1]), found[2]) if found else None


def parse_attempt(name: str) -> str | None:
    """The attempt of a file name in `attempts/`; None for any other name."""
    found = re.fullmatch(r"(\d+-\d+)\.json", name)
    return found[1] if found else None


@dataclass(frozen=True)
class Run:
    """The folder of a training run."""

    uri: str

    @classmethod
    def owning(cls, uri: str) -> "Run":
        """The run that a URI is the final model or a checkpoint of; else the URI itself as a run."""
        parent, name = split(uri)
        if CheckpointFolder(uri).step is not None:
            return cls(split(parent)[0])
        return cls(parent) if name == "model" else cls(uri)

    @property
    def run_id(self) -> str:
        """The name of the run's folder."""
        return split(self.uri)[1]

    @property
    def store(self) -> "Store | None":
        """The store that the run is in; None for a folder that is not STORE/runs/RUN_ID."""
        return _store_of(self.uri, "runs")

    @property
    def spec(self) -> str:
        """The spec the run was started with."""
        return join(self.uri, "spec.json")

    @property
    def facts(self) -> str:
        """What the spec does not contain: corpus, start time, versions, git commit."""
        return join(self.uri, "run.json")

    @property
    def model(self) -> ModelFolder:
        """The final foldable model."""
        return ModelFolder(join(self.uri, "model"))

    @property
    def init(self) -> ModelFolder:
        """The random initial weights of a run without a checkpoint to start from."""
        return ModelFolder(join(self.uri, "init"))

    @property
    def seed_distances(self) -> str:
        """How far each depth was from the checkpoint before training."""
        return join(self.uri, SEED_FILE)

    @property
    def checkpoints(self) -> str:
        """The folder of all checkpoints."""
        return join(self.uri, "checkpoints")

    def checkpoint(self, step: int, attempt: object) -> CheckpointFolder:
        """The checkpoint that an attempt writes at a step."""
        return CheckpointFolder(join(self.checkpoints, f"step-{step:08d}-{attempt}"))

    @property
    def metrics(self) -> str:
        """The folder of the metrics' parts."""
        return join(self.uri, "metrics")

    def metrics_part(self, attempt: object, first_step: int) -> str:
        """The metrics of consecutive steps of one attempt, as JSON lines."""
        return join(self.metrics, f"{attempt}-{first_step:08d}.jsonl")

    @property
    def attempts(self) -> str:
        """The folder with a file for each attempt."""
        return join(self.uri, "attempts")

    def attempt(self, attempt: object) -> str:
        """The file by which an attempt claims the run."""
        return join(self.attempts, f"{attempt}.json")

    @property
    def tensorboard(self) -> str:
        """TensorBoard's event files, where the store is a local folder."""
        return join(self.uri, "tensorboard")

    def exploded(self, step: int) -> str:
        """The batch whose gradient stopped the run."""
        return join(self.uri, "exploded", f"step-{step:08d}.json")


@dataclass(frozen=True)
class PreparedCorpus:
    """The folder of a prepared corpus."""

    uri: str

    def file(self, name: str) -> str:
        """A file of the corpus by its relative path, such as a shard's in the manifest."""
        return inside(self.uri, name)

    @property
    def corpus_id(self) -> str:
        """The name of the corpus folder."""
        return split(self.uri)[1]

    @property
    def manifest(self) -> str:
        """Written last, so a corpus folder that has one is whole."""
        return self.file(MANIFEST_FILE)

    @property
    def tokenizer(self) -> str:
        """The tokenizer of a stock checkpoint, for the tasks that write shards."""
        return self.file(STOCK_TOKENIZER_FILE)

    @property
    def index(self) -> str:
        """A row for each utterance."""
        return self.file(INDEX_FILE)

    @property
    def quarantine(self) -> str:
        """A row for each utterance that was left out, with the reason."""
        return self.file(QUARANTINE_FILE)

    @property
    def shards(self) -> str:
        """The folder of the shards."""
        return self.file("shards")


def shard_file(split_name: str, bucket: int, part: int) -> str:
    """A shard's path relative to its corpus."""
    return f"shards/{split_name}-{bucket:02d}-{part:05d}.parquet"


@dataclass(frozen=True)
class SearchFolder:
    """The folder of a hyperparameter search."""

    uri: str

    @property
    def search_id(self) -> str:
        """The name of the search's folder."""
        return split(self.uri)[1]

    @property
    def store(self) -> "Store | None":
        """The store that the search is in; None for a folder that is not STORE/searches/SEARCH_ID."""
        return _store_of(self.uri, "searches")

    @property
    def description(self) -> str:
        """The spec and the corpus of the search."""
        return join(self.uri, "search.json")

    @property
    def trials(self) -> str:
        """The folder of the trials' records."""
        return join(self.uri, "trials")

    def trial(self, name: str) -> str:
        """The record of one trial."""
        return inside(self.trials, f"{name}.json")

    def claim(self, attempt: object, run_id: str) -> str:
        """The file by which one of several trials with the same run claims it."""
        return inside(self.uri, "claims", str(attempt), f"{run_id}.json")


@dataclass(frozen=True)
class TranscriptsFolder:
    """The folder of a transcribed corpus."""

    uri: str

    @property
    def plan(self) -> str:
        """What is transcribed and how, decided before anything is: a row group for each shard."""
        return join(self.uri, "plan.parquet")

    @property
    def manifest(self) -> str:
        """Counts and checksums; written last."""
        return join(self.uri, MANIFEST_FILE)

    def shard(self, number: int) -> str:
        """The transcripts of a shard of the plan; it is written once."""
        return join(self.uri, "shards", f"part-{number:05d}.parquet")

    def lines(self, number: int) -> str:
        """The same as JSON lines."""
        return join(self.uri, "shards", f"part-{number:05d}.jsonl")

    def starts(self, number: int) -> str:
        """The folder with a file for each start of a shard."""
        return join(self.uri, "starts", f"part-{number:05d}")

    @property
    def corpus(self) -> str:
        """The corpus of what is kept."""
        return join(self.uri, "corpus")

    @property
    def corpus_rows(self) -> str:
        """The manifest of that corpus."""
        return join(self.corpus, "train.jsonl")

    def clip(self, number: int, row: int) -> str:
        """The audio of a row of a shard, where the source has it in a container; relative to the corpus."""
        return f"audio/part-{number:05d}/{row:05d}.flac"


STORE_FOLDERS = frozenset({"corpora", "runs", "searches", "transcripts", "results", "hypotheses"})
"""Folders of a store; one of them tells a store from any other folder."""


@dataclass(frozen=True)
class Store:
    """A store by its root, a folder or s3://bucket/prefix; a relative path becomes absolute."""

    root: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", absolute(self.root))

    @property
    def runs(self) -> str:
        """The folder of all runs."""
        return join(self.root, "runs")

    def run(self, run_id: str) -> Run:
        """A run by its id."""
        return Run(inside(self.runs, run_id))

    def corpus(self, corpus_id: str) -> PreparedCorpus:
        """A prepared corpus by its id."""
        return PreparedCorpus(inside(join(self.root, "corpora"), corpus_id))

    @property
    def searches(self) -> str:
        """The folder of all searches."""
        return join(self.root, "searches")

    def search(self, search_id: str) -> SearchFolder:
        """A search by its id."""
        return SearchFolder(inside(self.searches, search_id))

    def transcripts(self, name: str) -> TranscriptsFolder:
        """A transcribed corpus by its name."""
        return TranscriptsFolder(inside(self.root, "transcripts", name))

    def tables(self, kind: str) -> str:
        """The folder of `results` or `hypotheses`: one Parquet file for each evaluation."""
        return join(self.root, kind)

    @property
    def results(self) -> str:
        """The folder of result rows."""
        return self.tables("results")

    @property
    def hypotheses(self) -> str:
        """The folder of hypotheses."""
        return self.tables("hypotheses")

    @property
    def report(self) -> str:
        """The default folder of the report."""
        return join(self.root, "report")

    def source(self, name: str) -> str:
        """A raw corpus that foldray generates itself."""
        return join(self.root, "sources", name)


def _store_of(uri: str, kind: str) -> Store | None:
    """The store of a folder STORE/<kind>/<id>."""
    parent, _ = split(uri)
    root, name = split(parent)
    return Store(root) if name == kind else None
