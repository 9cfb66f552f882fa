import json
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.errors import BadInputError
from tasks.publish.entries import entries_table, entry_differences_table
from tasks.publish.layout import with_rope_theta
from tasks.publish.lineage import marker
from tests.committed import objects_of
from tests.publish.conftest import Make, second_entry

RunStage = Callable[..., Artifact]
RECIPE: dict[str, Any] = {
    "repo_name": "somebody/Llama-Medius-tiny",
    "title": "Llama Medius tiny",
    "merge_method": "TIES",
    "expected": {"exercise_add": 0.7, "leaderboard_ifeval": 0.55},
}


def tuned(make: Make, pipeline: dict[str, Artifact], source: Mapping[str, Any], **counts: int) -> Artifact:
    """A fine-tuning on instructions of this source that left the fusion's bytes as they were."""
    evolved = make("evolve", "evolve", {"instructions.jsonl": b"{}\n"}, metrics=counts, recipe={"source": source})
    recipe = {"sources": [{"kind": "instructions"}]}
    corpus = make("corpus", "corpus-sft", {"train.parquet": b"rows"}, {"instructions": evolved}, recipe=recipe)
    return make("sft", "sft", objects_of(pipeline["fuse"]), {"model": pipeline["fuse"], "corpus": corpus})


def publish(
    run_stage: RunStage, pipeline: dict[str, Artifact], model: Artifact | None = None, **changes: Any
) -> Artifact:
    runtime = changes.pop("runtime", {})
    inputs = {"model": model or pipeline["fuse"], "evaluation": pipeline["evaluate"]}
    return run_stage("publish", {**RECIPE, **changes}, inputs, runtime)


def test_the_model_is_there_byte_for_byte(run_stage: RunStage, pipeline: dict[str, Artifact]) -> None:
    files, model = objects_of(publish(run_stage, pipeline)), objects_of(pipeline["fuse"])
    del model["training_log.jsonl"]
    assert {name: files[name] for name in model} == model
    assert set(files) - set(model) == {"README.md", "NOTICE"}
    assert b"Built with Llama" in files["NOTICE"]
    assert b"Improved using Qwen" in files["NOTICE"]
    assert b"ODC Attribution License" in files["NOTICE"]


def test_the_card_is_one_and_says_what_was_measured(run_stage: RunStage, pipeline: dict[str, Artifact]) -> None:
    text = objects_of(publish(run_stage, pipeline))["README.md"].decode()
    card = ModelCard(text)
    assert card.data.license == "llama3.1"
    assert card.data.base_model == ["Qwen/Qwen2.5-14B-Instruct"], "neither a teacher nor a donor"
    assert card.data.tags == ["mergekit", "merge", "distillation"]
    assert card.data.datasets == ["HuggingFaceFW/fineweb"]
    results = json.loads(objects_of(pipeline["evaluate"])["results.json"])
    final = results["models"]["final"]
    measured = {each.dataset_type: each for each in card.data.eval_results}
    assert measured["exercise_add"].metric_value == final["tasks"]["exercise_add"]["value"]
    assert measured["exercise_add"].metric_args == {"stderr": final["accuracy"]["stderr"], "n": 50}
    assert measured["heldout-texts"].metric_value == final["bits_per_byte"]["value"]

    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == [
        "Overview",
        "Distillation steps",
        "Evaluation",
        "Use cases",
        "Deployment options",
        "Technical specifications",
        "Lineage",
        "Licence and notices",
    ]
    assert (
        "distilled from the stored logits of meta-llama/Llama-3.1-405B-Instruct and Qwen/Qwen2.5-72B-Instruct" in text
    )
    assert "merged (TIES; ties, llama density 1.0 weight 0.5) (`fuse`)" in text
    assert "twin" not in text.partition("## Distillation steps")[2].partition("## Evaluation")[0], "no step of it"
    assert "**Built with Llama** · **Improved using Qwen**" in text
    assert "| teacher | Qwen/Qwen2.5-72B-Instruct | qwen |" in text
    # What the hub reads: the metrics as a model index.
    index = yaml.safe_load(text.split("---\n")[1])["model-index"]
    (metric,) = [each["metrics"][0] for each in index[0]["results"] if each["dataset"]["type"] == "exercise_add"]
    assert (index[0]["name"], metric["value"]) == ("Llama Medius tiny", final["accuracy"]["value"])
    row = f"| final | {final['bits_per_byte']['value']:.4f} ± {final['bits_per_byte']['stderr']:.4f} |"
    assert row in text
    assert "| leaderboard_ifeval | – | – | 0.5500 | – | – |" in text
    assert "| parameters | 64 |" in text
    for label, artifact in pipeline.items():
        manifest = artifact.manifest()
        assert manifest is not None
        row = f"| {label} | {manifest.stage} | {manifest.key[:16]} | {manifest.digest[:16]} |"
        # The twin of the Llama branch was not evaluated, so nothing published depends on it.
        assert (row in text) == (label != "twin-llama")


def test_benchmarks_stand_by_themselves_and_with_their_mean(
    run_stage: RunStage, make: Make, pipeline: dict[str, Artifact]
) -> None:
    results = second_entry(json.loads(objects_of(pipeline["evaluate"])["results.json"]))
    data = json.dumps(results).encode()
    evaluation = make("evaluate", "evaluate-both", {"results.json": data}, {"model.final": pipeline["fuse"]})
    recipe = {**RECIPE, "expected": {"exercise_add": 0.7, "leaderboard_gpqa": 0.36}}
    text = objects_of(run_stage("publish", recipe, {"model": pipeline["fuse"], "evaluation": evaluation}))["README.md"]
    part = text.decode().partition("## Evaluation")[2].partition("\n## ")[0]
    assert entries_table(results, recipe["expected"]).markdown() in part
    assert re.search(r"^\| mean, equal weights \| – \| – \| .* \| 0\.530 \|$", part, re.MULTILINE)
    assert "`final` minus each other model, paired over the same items:" in part
    assert entry_differences_table(results).markdown() in part
    assert "| gpqa_diamond | acc_norm |" in part
    asked = "answers by greedy decoding, choices by their likelihood, prompts in each model's own chat template, "
    assert f"on the same items: {asked}gpqa_diamond without one." in part
    assert "| exercise_add | 1 | 0 | exact_match | generated | abababababab |" in part
    assert "| gpqa_main | 1 | 5 | acc_norm | likelihood | – |" in part


@pytest.mark.parametrize("chosen", ["fused", "tuned"])
def test_the_card_is_that_of_the_model_that_was_chosen(
    run_stage: RunStage, make: Make, pipeline: dict[str, Artifact], chosen: str
) -> None:
    source = {"kind": "dataset", "rows": {"origin": "hub", "dataset": "someone/chats"}}
    fine_tuned = tuned(make, pipeline, source, seeds=20, answered=12)
    candidates = {"model.fused": pipeline["fuse"], "model.tuned": fine_tuned, "corpus": pipeline["corpus"]}
    metrics = {"chosen": chosen, "reason": f"{chosen} goes on: why", "models": {"fused": {}, "tuned": {}}}
    choice = make("choose", "choose", objects_of(pipeline["fuse"]), candidates, metrics)
    licenses = {"data": {"someone/chats": "mit"}}
    text = objects_of(publish(run_stage, pipeline, choice, licenses=licenses))["README.md"].decode()
    assert f"Of fused and tuned one was chosen on what the evaluation does not read: {chosen} goes on: why" in text
    told = chosen == "tuned"
    assert ("The result was trained on instructions" in text) is told
    assert ("The instructions are 12 of 20 conversations of someone/chats" in text) is told
    assert ("| data | someone/chats | mit |" in text) is told


def test_nothing_volatile_is_published(run_stage: RunStage, pipeline: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = publish(run_stage, pipeline)
    first = objects_of(artifact)
    for entry in list(artifact.store.list(artifact.directory)):
        artifact.store.delete(entry.path)
    assert objects_of(publish(run_stage, pipeline)) == first
    for name in ("README.md", "NOTICE"):
        text = first[name].decode()
        for volatile in (str(tmp_path), socket.gethostname(), "node-17", "2026-", "artifacts/"):
            assert volatile not in text, f"{volatile} in {name}"


def test_an_evaluation_of_another_model_is_refused(run_stage: RunStage, pipeline: dict[str, Artifact]) -> None:
    inputs = {"model": pipeline["distill-qwen"], "evaluation": pipeline["evaluate"]}
    with pytest.raises(BadInputError, match="measured another model as 'final'"):
        run_stage("publish", RECIPE, inputs)


def test_a_directory_is_filled_whole_and_never_overwritten(
    run_stage: RunStage, pipeline: dict[str, Artifact], tmp_path: Path
) -> None:
    target = tmp_path / "published"
    runtime = {"directory": str(target)}
    files = objects_of(publish(run_stage, pipeline, target="directory", runtime=runtime))
    assert {file.name: file.read_bytes() for file in target.iterdir()} == files
    assert not any(file.is_symlink() for file in target.iterdir())
    (target / "README.md").write_text("mine")
    with pytest.raises(BadInputError, match="exists with other content"):
        publish(run_stage, pipeline, target="directory", title="Llama another", runtime=runtime)
    assert (target / "README.md").read_text() == "mine"


def test_a_permissive_model_has_no_notice_but_of_the_text(
    run_stage: RunStage, make: Make, pipeline: dict[str, Artifact], tmp_path: Path
) -> None:
    source = {"source": {"kind": "miniature", "name": "qwen-student"}}
    model = make("models", "alone", objects_of(pipeline["fuse"]), recipe=source)
    files = objects_of(publish(run_stage, pipeline, model, repo_name="tiny", title="tiny"))
    # Its terms ask for no notice, but for its text.
    assert files["NOTICE"].decode() == (
        "The text of the licence apache-2.0 (qwen-student) is not among these files. Whoever passes them on must add "
        "it: https://www.apache.org/licenses/LICENSE-2.0\n"
    )
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert "The instructions" not in card.text


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"kind": "exercises"}, "are 1,200 exercises generated from rules"),
        (
            {"kind": "dataset", "rows": {"origin": "hub", "dataset": "arcee-ai/EvolKit-75K"}},
            "are 1,200 of 1,500 conversations of arcee-ai/EvolKit-75K",
        ),
        (
            {"kind": "autoevol", "seeds": {"origin": "inline"}, "evolver": {"model": "Qwen/Qwen3-8B"},
             "optimiser": {"model": "Qwen/Qwen3-8B"}, "answerer": {"model": "Qwen/Qwen2.5-72B-Instruct"}},
            "1,200 instructions were evolved from 1,500 seeds of the profile by Qwen/Qwen3-8B and answered by Qwen",
        ),
    ],
)  # fmt: skip
def test_the_card_says_what_the_instructions_were(
    run_stage: RunStage, make: Make, pipeline: dict[str, Artifact], source: dict[str, Any], said: str
) -> None:
    model = tuned(make, pipeline, source, answered=1200, seeds=1500)
    licenses = {"data": {"arcee-ai/EvolKit-75K": "mit"}} if source["kind"] == "dataset" else {}
    text = objects_of(publish(run_stage, pipeline, model, licenses=licenses))["README.md"].decode()
    overview = text.partition("## Overview")[2].partition("##")[0]
    assert said in overview
    assert said in text.partition("## Distillation steps")[2].partition("##")[0]
    own = "No evolved instruction set of another project was used" in overview
    assert own == (source["kind"] == "exercises")


def test_a_source_without_a_licence_is_refused(run_stage: RunStage, make: Make, pipeline: dict[str, Artifact]) -> None:
    source = {"kind": "dataset", "rows": {"origin": "hub", "dataset": "arcee-ai/EvolKit-75K"}}
    model = tuned(make, pipeline, source, answered=1, seeds=1)
    with pytest.raises(BadInputError, match=r"arcee-ai/EvolKit-75K is part .* licence is not known"):
        publish(run_stage, pipeline, model)


def test_how_to_run_it(run_stage: RunStage, pipeline: dict[str, Artifact]) -> None:
    text = objects_of(publish(run_stage, pipeline))["README.md"].decode()
    options = text.partition("## Deployment options")[2].partition("\n## ")[0]
    for command in (
        'AutoModelForCausalLM.from_pretrained("somebody/Llama-Medius-tiny"',
        "apply_chat_template",
        "vllm serve somebody/Llama-Medius-tiny",
        "python -m sglang.launch_server --model-path somebody/Llama-Medius-tiny",
        "python convert_hf_to_gguf.py somebody/Llama-Medius-tiny --outfile Llama-Medius-tiny.gguf --outtype f32",
    ):
        assert command in options


def test_readers_older_than_transformers_5_find_the_rotary_base(
    run_stage: RunStage, make: Make, pipeline: dict[str, Artifact]
) -> None:
    def published(rope: dict[str, Any]) -> tuple[dict[str, Any], str]:
        files = objects_of(pipeline["fuse"])
        config = {**json.loads(files["config.json"]), "rope_parameters": rope}
        files["config.json"] = json.dumps(config).encode()
        model = make("sft", f"tuned-{rope['rope_type']}", files, {"model": pipeline["fuse"]})
        results = objects_of(pipeline["evaluate"])["results.json"]
        evaluation = make("evaluate", f"of-{rope['rope_type']}", {"results.json": results}, {"model.final": model})
        after = objects_of(run_stage("publish", RECIPE, {"model": model, "evaluation": evaluation}))
        assert objects_of(model) == files, "the model itself stays as it was"
        return json.loads(after["config.json"]), after["README.md"].decode()

    plain = {"rope_type": "default", "rope_theta": 1000000.0}
    config, card = published(plain)
    assert (config["rope_theta"], config["rope_parameters"]) == (1000000.0, plain)
    assert "config.json has rope_theta also where what is older than transformers 5 looks for it" in card
    config, card = published({"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0})
    assert "rope_theta" not in config
    assert "what does not know its rope_parameters takes other rotary embeddings without a word" in card


def test_transformers_reads_the_same_out_of_both(tmp_path: Path) -> None:
    from transformers import AutoConfig, Qwen2Config

    Qwen2Config(rope_parameters={"rope_type": "default", "rope_theta": 1e6}).save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    file = tmp_path / "config.json"
    complete = with_rope_theta(json.loads(file.read_bytes()))
    assert complete["rope_theta"] == 1e6
    file.write_text(json.dumps(complete))
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == before


def test_no_path_of_a_machine_is_in_a_card(run_stage: RunStage, make: Make, pipeline: dict[str, Artifact]) -> None:
    folder = {"source": {"kind": "directory", "path": "/srv/secret/qwen-14b", "content_sha256": "ab" * 32}}
    base = make("models", "model-base", objects_of(pipeline["student"]), recipe=folder)
    teacher = make("models", "model-teacher", {**objects_of(pipeline["student"]), "x.json": b"{}"}, recipe=folder)
    texts = {"sources": [{"kind": "files", "paths": ["/srv/secret/a.jsonl", "~/secret/b*.jsonl"]}]}
    corpus = make("corpus", "corpus", {"train.parquet": b"rows"}, {"tokenizer": base}, recipe=texts)
    given = {"teacher": teacher, "corpus": corpus}
    dump = make("dump_logits", "dump", {"logits.json": b"{}"}, given, {"tokens": 1})
    trained = make("distill", "distill", objects_of(pipeline["fuse"]), {"student": base, "logits": dump})
    source = {
        "kind": "autoevol",
        "seeds": {"origin": "file", "path": "/srv/secret/seeds.json"},
        **{role: {"model": "/srv/secret/Qwen3-8B"} for role in ("evolver", "optimiser", "answerer", "judge")},
    }
    evolved = make("evolve", "evolve", {"i.jsonl": b""}, metrics={"seeds": 2, "answered": 1}, recipe={"source": source})
    instructions = make("corpus", "corpus-sft", {"train.parquet": b"r"}, {"instructions": evolved},
                        recipe={"sources": [{"kind": "instructions"}]})  # fmt: skip
    model = make("sft", "sft", objects_of(pipeline["fuse"]), {"model": trained, "corpus": instructions})
    results = json.loads(objects_of(pipeline["evaluate"])["results.json"])
    results["models"]["base"]["served"] = {"model": "/srv/secret/base", "revision": "one", "api": "chat"}
    evaluation = make("evaluate", "evaluate-own", {"results.json": json.dumps(results).encode()},
                      {"model.final": model})  # fmt: skip
    licenses = {
        "models": {"/srv/secret/qwen-14b": "apache-2.0", "/srv/secret/Qwen3-8B": "apache-2.0"},
        "data": {"/srv/secret/a.jsonl, ~/secret/b*.jsonl": "own", "/srv/secret/seeds.json": "cc-by-4.0"},
    }
    recipe = {**RECIPE, "licenses": licenses, "target": "hub"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.publish.worker.push", lambda *_, **__: None)
        files = objects_of(run_stage("publish", recipe, {"model": model, "evaluation": evaluation}))
    for name, data in files.items():
        assert b"secret" not in data, name
    text = files["README.md"].decode()
    card = ModelCard(text)
    assert card.data.base_model is None, "only what the hub can link"
    assert "has its weights from base (a folder, content abababababab)" in text
    assert "distilled from the stored logits of teacher (a folder, content abababababab)" in text
    assert "from 2 seeds of seeds.json by Qwen3-8B and answered by Qwen3-8B, judged by Qwen3-8B" in text
    assert "| data | a.jsonl, b*.jsonl | own |" in text
    assert "base is base at a server" in text
    assert b"Made with seeds.json, which is under CC BY 4.0" in files["NOTICE"]


def test_a_model_that_never_ends_is_not_published(
    run_stage: RunStage, make: Make, pipeline: dict[str, Artifact]
) -> None:
    files = {**objects_of(pipeline["fuse"]), "generation_config.json": b"{}"}
    model = make("sft", "endless", files, {"model": pipeline["fuse"]})
    results = objects_of(pipeline["evaluate"])["results.json"]
    evaluation = make("evaluate", "evaluate-endless", {"results.json": results}, {"model.final": model})
    with pytest.raises(BadInputError, match="answers never end"):
        run_stage("publish", RECIPE, {"model": model, "evaluation": evaluation})
    nested = make("sft", "nested", {"part/model.safetensors": b""}, {"model": pipeline["fuse"]})
    evaluation = make("evaluate", "evaluate-nested", {"results.json": results}, {"model.final": nested})
    with pytest.raises(BadInputError, match=r"has the weights part/model\.safetensors in a folder"):
        run_stage("publish", RECIPE, {"model": nested, "evaluation": evaluation})


def test_a_card_is_known_again_by_its_model(run_stage: RunStage, pipeline: dict[str, Artifact]) -> None:
    manifest = pipeline["fuse"].manifest()
    assert manifest is not None
    files = objects_of(publish(run_stage, pipeline, overview="Another card."))
    assert marker(manifest) in files["README.md"].decode().splitlines()
