"""The two files that describe a run: `spec.json`, and `run.json` with what the spec does not contain."""

from pydantic import BaseModel, ConfigDict, JsonValue

from foldray.config.load import build_spec
from foldray.config.spec import RunSpec
from foldray.storage.layout import Run
from foldray.storage.records import read_as


class RunFacts(BaseModel):
    """What a run's spec does not contain.

    Attributes:
        corpus: URI of the prepared corpus when the run began.
        corpus_id: Its id, which is the same in every store.
        spec_hash: The last part of the run's id.
        created: When the run began, in UTC.
        versions: Versions of the packages it began with.
        git_commit: The commit of foldray, if it ran from a repository.
        local_checkpoint: Whether `model.checkpoint` was a folder where the run began: it may look like a hub name.
    """

    model_config = ConfigDict(frozen=True)

    corpus: str
    corpus_id: str
    spec_hash: str
    created: str
    versions: dict[str, str]
    git_commit: str
    local_checkpoint: bool = False


def read_run_spec(run: str) -> RunSpec:
    """Read the spec that a run was started with. Raises UserError naming the file or the field that is wrong."""
    file = Run(run).spec
    return build_spec(read_as(dict[str, JsonValue], file), file)


def read_run_facts(run: str) -> RunFacts:
    """Read `run.json` of a run. Raises DamagedFileError if a field is missing or wrong."""
    return read_as(RunFacts, Run(run).facts)
