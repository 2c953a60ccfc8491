"""Models on the Hugging Face hub: copied to its cache at one commit, then read and checked like any local folder."""

import warnings
from pathlib import Path

from huggingface_hub import HfApi, ResolvedRevision, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
)
from huggingface_hub.utils import httpx, validate_repo_id  # type: ignore[attr-defined]  # httpx or httpx2

from foldray import storage
from foldray.errors import UserError
from foldray.models.config_checks import check_size
from foldray.models.hub_errors import hub_errors
from foldray.storage.layout import (
    CONFIG_FILE,
    EXPORT_FILE,
    FOLD_FILE,
    GENERATION_FILE,
    INT8_FILE,
    PRIVATE_FILE,
    STOCK_FILE,
    STOCK_TOKENIZER_FILE,
    SUBWORDS_FILE,
    TOKENIZER_SETTINGS_FILE,
    VOCABULARY_FILE,
)

INDEX_FILE = f"{STOCK_FILE}.index.json"
ADAPTER_FILE = "adapter_config.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
CONVERT = "pickle can run code. Convert them where you trust them: from_pretrained(…).save_pretrained(FOLDER)"
"""What is wrong with pickled weights, and the fix."""

_BESIDE = (
    "preprocessor_config.json",
    "processor_config.json",
    GENERATION_FILE,
    STOCK_TOKENIZER_FILE,
    TOKENIZER_SETTINGS_FILE,
    VOCABULARY_FILE,
    SUBWORDS_FILE,
    FOLD_FILE,
    PRIVATE_FILE,
)
"""What else foldray reads of a model, where there is one."""
_BOT = "SFconvertbot"
_BOTS_TITLE = "Adding `safetensors` variant of this model"
"""Author and title of the hub's own conversions to safetensors, as `transformers.safetensors_conversion` has them."""
_WHERE = "model.checkpoint"
_MODEL = "MODEL"
"""What errors are reported about: a field of a spec, or the argument of a command."""
DOWN = 500
"""From this HTTP status on, the hub is down, and the cache is read as if it couldn't be reached."""


def copy_config(name: str) -> Path:
    """Copy the configuration of a hub model to the hub's cache; returns its folder. Raises UserError."""
    with hub_errors(name, _WHERE):
        return _Repository(name).copy(CONFIG_FILE).parent


def copy_tokenizer(name: str) -> Path:
    """Copy configuration and tokenizer of a hub model to the hub's cache; returns its folder. Raises UserError."""
    with hub_errors(name, _WHERE):
        model = _Repository(name)
        for file in (GENERATION_FILE, STOCK_TOKENIZER_FILE, TOKENIZER_SETTINGS_FILE):
            if file in model.files:
                model.copy(file)
        return model.copy(CONFIG_FILE).parent


def copy_model(name: str) -> Path:
    """Copy what foldray reads of a hub model to the hub's cache, all of one commit; returns its folder.

    Raises:
        UserError: The hub can't be reached or refuses the model, or it has no safetensors.
    """
    from foldray.models.weight_files import indexed_files

    with hub_errors(name, _WHERE):
        model = _with_weights(name)
        if STOCK_FILE in model.files:
            model.copy(STOCK_FILE)
        else:
            for shard in indexed_files(model.copy(INDEX_FILE), name, _WHERE):
                model.copy(shard)
        for file in _BESIDE:
            if file in model.files:
                model.copy(file)
        return model.copy(CONFIG_FILE).parent


def copy_fold(name: str) -> Path:
    """Copy a fold from the hub, such as `foldray push` puts there, to the hub's cache; returns its folder.

    Args:
        name: OWNER/NAME.

    Raises:
        UserError: The hub can't be reached or refuses the model, or it is not a fold.
    """
    with hub_errors(name, _MODEL):
        model = _Repository(name, where=_MODEL)
        if FOLD_FILE not in model.files:
            problem = f"{name} is on the hub, but not a fold ({FOLD_FILE} is missing)"
            raise UserError(_MODEL, f"{problem}; fold it with `foldray train … model.checkpoint={name}`")
        model.copy(INT8_FILE if INT8_FILE in model.files else STOCK_FILE)
        for file in (*_BESIDE, EXPORT_FILE):
            if file in model.files:
                model.copy(file)
        return model.copy(CONFIG_FILE).parent


def is_page(name: str) -> bool:
    """Whether a name has the form OWNER/NAME that pages of models have on the hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def fold_folder(model: str | Path) -> str:
    """Return a model folder or URI as it is, or for OWNER/NAME the copy of that fold on the hub. Raises UserError."""
    name = str(model)
    return str(copy_fold(name)) if is_page(name) and not storage.is_folder(name) else name


def list_model(name: str) -> set[str]:
    """Names of a hub model's files. Raises UserError if it has no safetensors, before anything large is copied."""
    with hub_errors(name, _WHERE):
        return _with_weights(name).files


class _Repository:
    """A model repository at one commit; if the hub can't be reached, what the cache has of it.

    Attributes:
        files: Names of its files.
    """

    def __init__(self, name: str, revision: str | None = None, where: str = _WHERE) -> None:
        self._name, self._where = name, where
        self.commit: ResolvedRevision = HfApi().resolve_revision(name, revision=revision)
        self._sizes: dict[str, int | None] = {}
        listed = self._listed()
        self.reached = listed is not None
        self.files = {file.name for file in self.copy(CONFIG_FILE).parent.iterdir()} if listed is None else listed

    def _listed(self) -> set[str] | None:
        try:
            info = HfApi().model_info(self._name, revision=self.commit.resolved, files_metadata=True)
        except (httpx.TransportError, OfflineModeIsEnabled):
            return None
        except HfHubHTTPError as error:
            if error.response.status_code < DOWN:
                raise
            return None
        self._sizes = {file.rfilename: file.size for file in info.siblings or []}
        return {*self._sizes}

    def copy(self, file: str) -> Path:
        check_size(file, self._sizes.get(file), self._where, self._name)
        try:
            return Path(hf_hub_download(self._name, file, revision=self.commit))
        except RemoteEntryNotFoundError:
            raise UserError(self._where, f"{self._name} has no {file}; choose another model") from None

    @property
    def has_weights(self) -> bool:
        return STOCK_FILE in self.files or INDEX_FILE in self.files


def _with_weights(name: str) -> _Repository:
    """The repository, or the hub's own conversion of it if the repository itself has pickled weights only."""
    model = _Repository(name)
    if ADAPTER_FILE in model.files:
        raise UserError(_WHERE, f"{name} is an adapter ({ADAPTER_FILE}), not a model; merge it into its model first")
    if model.has_weights:
        return model
    if not model.reached:
        raise LocalEntryNotFoundError(f"its cache lacks {STOCK_FILE}")
    if (revision := _conversion(name, model.commit.resolved)) and (
        converted := _Repository(name, revision)
    ).has_weights:
        warnings.warn(f"{name} has no {STOCK_FILE}; reading the hub's conversion by {_BOT}, {revision}", stacklevel=2)
        return converted
    pickled = sorted(file for file in model.files if file.endswith(PICKLED))
    if pickled:
        raise UserError(_WHERE, f"{name} has weights in {pickled[0]} only, not {STOCK_FILE}; {CONVERT}")
    raise UserError(_WHERE, f"{name} has no {STOCK_FILE}; choose another model")


def _conversion(name: str, commit: str) -> str | None:
    """The open pull request in which the hub's bot converted this very commit.

    Unlike transformers, never ask the service for a conversion: it would publish a pull request in the user's name.
    """
    try:
        for pull in HfApi().get_repo_discussions(name, author=_BOT, discussion_status="open"):
            if pull.is_pull_request and pull.author == _BOT and pull.title == _BOTS_TITLE:
                commits = HfApi().list_repo_commits(name, revision=pull.git_reference)
                if [each.commit_id for each in commits[1:2]] == [commit]:
                    return pull.git_reference
    except HfHubHTTPError:  # discussions are off in this repository
        pass
    return None
