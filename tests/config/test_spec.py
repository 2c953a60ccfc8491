"""Specs: recipes, overrides, one clear line for every mistake, hashes that mean something."""

import json
from pathlib import Path

import pytest

from foldray.config.corpus import CorpusSpec
from foldray.config.load import override_spec
from foldray.config.recipes import load_recipe, recipe_names
from foldray.config.spec import RunSpec
from foldray.errors import UserError
from tests.support.paths import PROJECT


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_whole(name: str) -> None:
    spec = load_recipe(name)
    assert spec.name == name
    assert spec.about.endswith(".")
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec


def test_overrides_take_yaml_values() -> None:
    spec = load_recipe(
        "an4", ["fold.depths=[3,6]", "optim.lr=3e-4", "model.config.dropout=0.2", "corpus.path=s3://b/p"]
    )
    assert (spec.fold.depths, spec.optim.lr) == ((3, 6), 3e-4)
    assert (spec.model.config["dropout"], spec.model.config["hidden_size"]) == (0.2, 144)
    assert spec.corpus.path == "s3://b/p"


@pytest.mark.parametrize(
    ("given", "known"),
    [
        (("train", "dev", "test"), ("train", "valid=dev", "test")),
        (("train", "val=A+B"), ("train", "valid=A+B")),
        (("train", "validation", "test"), ("train", "valid=validation", "test")),
        (("train", "valid", "dev"), ("train", "valid", "dev")),  # two sets, of which one validates
        (("dev",), ("dev",)),  # a corpus to score
    ],
)
def test_dev_and_val_are_the_validation_split(given: tuple[str, ...], known: tuple[str, ...]) -> None:
    assert CorpusSpec(path="corpus", splits=given).splits == known


@pytest.mark.parametrize("name", ["valid", "dev", "val", "validation"])
def test_patience_and_search_take_any_name_of_the_validation_split(name: str) -> None:
    splits = f"corpus.splits=[train,{name},test]"
    spec = load_recipe("quickstart", [splits, "valid.patience=3", "valid.final=best"])
    assert "valid" in spec.corpus.split_names
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
    assert load_recipe("quickstart-search", [splits]).search is not None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"^optim\.lrr: unknown field; did you mean 'lr'\?$"),
        ("frobnicate=1", r"^frobnicate: unknown field; known here: name, about, corpus"),
        ("optim.lr=fast", r"^optim\.lr: 'fast' must be a number, such as 3e-4$"),
        ("optim.lr=-1", r"^optim\.lr: -1 must be greater than 0$"),
        ("optim.lr.x=1", r"^optim\.lr\.x: 'lr' is a value, not a section$"),
        ("fold.depths=[3,2]", r"^fold\.depths: \[3, 2\] must ascend"),
        ("fold.depths=[4,6]", r"^fold\.depths: the first depth is the seed and must equal num_layers = 3"),
        ("fold.lora_rank=4", r"^fold\.lora_rank: has no effect without LoRA; add lora to private$"),
        ("fold.lora_on=q_proj", r"^fold\.lora_on: give a list in brackets, such as \[q_proj\]$"),
        ("model.seed_layers=average", r"^model\.seed_layers: average needs a model\.checkpoint"),
        ("model.layers=[0,2,5]", r"^model\.layers: \[0, 2, 5\] needs a model\.checkpoint"),
        ("model.layers=[0,-1]", r"^model\.layers: -1 must be greater than or equal to 0$"),
        ("model.decoder_layers=[1]", r"^model\.decoder_layers: \[1\] needs a model\.checkpoint"),
        ("fold.order=group", r"^fold\.groups: sizes \[\] must be positive"),
        ("fold.order=spiral", r"^fold\.order: 'spiral' must be one of in_place, cycle, group"),
        ("optim.steps=10", r"^optim: set optim.epochs or optim.steps, not both; add optim.epochs=null"),
        ("corpus.min_seconds=16", r"^corpus: min_seconds \(16\) must be below max_seconds \(16\)$"),
        (
            "batch.max_duration=10",
            r"^batch\.max_duration: 10 s is shorter than corpus.max_seconds \(16\); raise",
        ),
        (
            "corpus.path=s3://key:secret@bucket/p",
            r"^corpus\.path: contains credentials; set them in the AWS environment",
        ),
        ("name=Bad Name", r"^name: string should match pattern"),
        ("seed", r"^seed: an override is key=value, such as optim.lr=3e-4$"),
        ("seed=[1", r"^seed: '\[1' is not a YAML value"),
    ],
)
def test_mistakes_get_one_line_with_the_field(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_recipe("an4", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.layers=[0,2,1,3,4,5]", r"^model\.layers: \[0, 2, 1, 3, 4, 5\] must be ascending numbers from 0"),
        ("model.layers=[0,1]", r"^model\.layers: \[0, 1\] are fewer than num_layers = 6; add some, or lower that"),
        ("model.decoder_layers=[2,3,3,4]", r"^model\.decoder_layers: \[2, 3, 3, 4\] must be ascending"),
        ("model.decoder_layers=[3,4]", r"^model\.decoder_layers: \[3, 4\] are fewer than num_layers = 4"),
    ],
)
def test_chosen_layers_must_fit_the_fold_before_a_checkpoint_is_looked_up(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("whisper-base", [override])
    with pytest.raises(UserError, match=r"^model\.decoder_layers: the decoder is not folded"):
        load_recipe("whisper-base", ["fold.decoder=null", "model.decoder_layers=[0,1,2,3]"])


def test_files_and_names(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: an4\noptim: {lr: 1e-4}\ncorpus: {path: here}\n")
    spec = load_recipe(str(mine))
    assert (spec.name, spec.optim.lr, spec.corpus.path) == ("mine", 1e-4, "here")
    assert spec.fold == load_recipe("an4").fold
    written = tmp_path / "spec.json"
    written.write_text(spec.model_dump_json())
    assert load_recipe(str(written)) == spec
    with pytest.raises(UserError, match=r"^nosuch: no such recipe or file; shipped recipes: an4, "):
        load_recipe("nosuch")
    other = tmp_path / "other.yaml"
    other.write_text("extends: mine.yaml\nseed: 3\nabout: 2024-01-01\n")
    with pytest.raises(UserError, match=r"^about: .* must be text; put it in quotes"):
        load_recipe(str(other))
    other.write_text("extends: mine.yaml\nseed: 3\n")
    assert (load_recipe(str(other)).seed, load_recipe(str(other)).optim.lr) == (3, 1e-4)
    other.write_text("extends: other.yaml\n")
    with pytest.raises(UserError, match=r"other.yaml: extends itself"):
        load_recipe(str(other))
    mine.write_text("optim: {lr: 1}")
    with pytest.raises(
        UserError, match=r"^corpus: missing in .*mine.yaml; add it, or give corpus=… on the command line"
    ):
        load_recipe(str(mine))
    mine.write_text("just words")
    with pytest.raises(UserError, match=r"mine.yaml: is not a mapping"):
        load_recipe(str(mine))
    mine.write_text("a: [")
    with pytest.raises(UserError, match=r"mine.yaml: not readable as YAML"):
        load_recipe(str(mine))


def test_the_hash_covers_what_results_depend_on_and_nothing_else() -> None:
    base = load_recipe("an4").run_id("corpus-1", "units")
    same = [
        "storage.root=s3://b/p",
        "scale.workers=8",
        "scale.max_failures=9",
        "checkpoint.every_steps=7",
        "corpus.path=x",
    ]
    for override in same:
        assert load_recipe("an4", [override]).run_id("corpus-1", "units") == base, override
    other = ["seed=1", "optim.lr=1e-5", "fold.depths=[3,6]", "loss.beta=0", "batch.per_step=3", "precision=bfloat16"]
    ids = {load_recipe("an4", [override]).run_id("corpus-1", "units") for override in other}
    assert len(ids) == len(other)
    assert base not in ids
    assert load_recipe("an4").run_id("corpus-2", "units") != base
    assert load_recipe("an4").run_id("corpus-1", "other units") != base
    assert base.startswith("an4-")


WHISPER = ["model.family=whisper", "model.config={}", "fold.depths=[3,6]"]


def test_a_decoder_is_folded_by_the_same_fields() -> None:
    both = load_recipe("an4", [*WHISPER, "fold.decoder={num_layers: 2, depths: [2, 4], private: norms}"])
    assert both.fold.decoder is not None
    planned = both.planned_model()
    assert planned.decoder == both.fold.decoder.plan()
    assert planned.decoder.path(4) == (0, 0, 1, 1)
    assert RunSpec.model_validate_json(both.model_dump_json()) == both
    dotted = ["fold.decoder.num_layers=2", "fold.decoder.depths=[2,4]", "fold.decoder.private=norms"]
    assert load_recipe("an4", [*WHISPER, *dotted]) == both
    assert override_spec(load_recipe("an4", WHISPER), dotted) == both
    assert load_recipe("an4", WHISPER).planned_model().decoder is None
    assert both.spec_hash("corpus", "units") != load_recipe("an4", WHISPER).spec_hash("corpus", "units")
    search = "search={space: {fold.decoder.order: {choice: [in_place, cycle]}}}"
    assert load_recipe("an4", [*WHISPER, *dotted, search]).search is not None


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ("{num_layers: 2, depths: [2]}", None),
        ("{num_layers: 2, depths: [2, 3, 4]}", r"^fold\.decoder\.depths: \[2, 3, 4\] must have one depth for each of"),
        ("{num_layers: 2, depths: [4, 2]}", r"^fold\.decoder\.depths: \[4, 2\] must ascend"),
        ("{num_layers: 2, depths: [3, 4]}", r"^fold\.decoder\.depths: the first depth is the seed and must equal"),
        ("{depths: [2, 4]}", r"^fold\.decoder\.num_layers: missing in"),
        ("{num_layers: 2, depths: [2, 4], lora_rank: 2}", r"^fold\.decoder\.lora_rank: has no effect without LoRA"),
        ("{num_layers: 2, depth: [2, 4]}", r"^fold\.decoder\.depths: missing|^fold\.decoder\.depth: unknown field"),
        ("{num_layers: 2, depths: [2, 4], decoder: {}}", r"^fold\.decoder\.decoder: unknown field"),
        ("3", r"^fold\.decoder: 3 must be a section of fields"),
    ],
)
def test_mistakes_in_the_decoder_name_its_field(decoder: str, message: str | None) -> None:
    overrides = [*WHISPER, f"fold.decoder={decoder}"]
    if message is None:
        load_recipe("an4", overrides)
        return
    with pytest.raises(UserError, match=message):
        load_recipe("an4", overrides)


def test_a_spec_without_a_folded_decoder_keeps_the_hash_of_its_run() -> None:
    run = PROJECT / "docs" / "an4" / "runs" / "an4-fold-6-12-22871f4b1c"
    spec = RunSpec.model_validate_json((run / "spec.json").read_text())
    assert spec.spec_hash(json.loads((run / "run.json").read_text())["corpus_id"], "units") == "8597123148"
