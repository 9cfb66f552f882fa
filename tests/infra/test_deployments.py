"""infra/prefect.yaml: a deployment for every profile, whose form refuses what could not run."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml
from prefect.utilities.callables import parameter_schema
from prefect.utilities.importtools import import_object

from flows.kubernetes_deploy import NOT_HERE
from flows.profiles import CONFIGS, load_profile
from flows.run_options import PROFILES, RecipeOptions
from flows.stack import CHECKOUT
from flows.stack_deploy import make_queues
from flows.stack_services import POOLS
from tasks.artifacts.errors import BadInputError

FILE: dict[str, Any] = yaml.safe_load((CHECKOUT / "infra" / "prefect.yaml").read_text())
DEPLOYMENTS: list[dict[str, Any]] = FILE["deployments"]


def schema_of(deployment: dict[str, Any]) -> dict[str, Any]:
    """What the server checks parameters with before it makes a run."""
    return parameter_schema(import_object(deployment["entrypoint"])).model_dump_for_openapi()


def test_every_profile_has_a_deployment_of_its_name() -> None:
    profiles = {path.stem for path in CONFIGS.glob("*.yaml")}
    recipes = [entry for entry in DEPLOYMENTS if entry["entrypoint"] == "flows.pipeline.distillation"]
    assert {entry["name"] for entry in recipes} == profiles == set(PROFILES)
    for entry in recipes:
        assert entry["parameters"]["profile"] == entry["name"]
        assert entry["work_pool"]["work_queue_name"] == entry["name"]
        assert FILE["definitions"]["queues"][entry["name"]] == 1


def test_places_are_counted_by_queues_and_not_by_leases_that_end_a_run() -> None:
    # A deployment's limit is a lease of the run's process: Prefect ends the run where it cannot be renewed.
    assert not [entry["name"] for entry in DEPLOYMENTS if "concurrency_limit" in entry]
    named = {entry["work_pool"]["work_queue_name"] for entry in DEPLOYMENTS if "work_queue_name" in entry["work_pool"]}
    assert named == FILE["definitions"]["queues"].keys()


def test_dead_runs_are_looked_for_every_minute_by_two_workers() -> None:
    looks = [entry for entry in DEPLOYMENTS if entry["entrypoint"] == "flows.maintenance.mark_dead_runs"]
    assert {entry["work_pool"]["name"] for entry in looks} == {"cpu", "medius"}, "one may be killed with its run"
    assert {entry["name"] for entry in looks} == NOT_HERE
    for entry in looks:
        assert [schedule["interval"] for schedule in entry["schedules"]] == [60]
        assert FILE["definitions"]["queues"][entry["work_pool"]["work_queue_name"]] > 1, "a dead look blocks no other"


def test_a_queue_without_a_limit_is_told_before_anything_is_deployed() -> None:
    pool = {"name": "tpu", "work_queue_name": "sweeps"}
    with pytest.raises(BadInputError, match=r"definitions\.queues says no limit for sweeps"):
        make_queues({"definitions": {"queues": {"tiny": 1}}, "deployments": [{"name": "mine", "work_pool": pool}]})


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda entry: entry["name"])
def test_a_deployment_has_a_pool_tags_and_parameters_that_its_form_takes(deployment: dict[str, Any]) -> None:
    assert deployment["work_pool"]["name"] in POOLS
    assert "medius" in deployment["tags"]
    jsonschema.validate(deployment["parameters"], schema_of(deployment))


@pytest.mark.parametrize(
    "parameters",
    [
        {"profile": "mikro"},
        {"profile": "tiny", "options": {"overrides": ["no equals sign"]}},
        {"profile": "tiny", "options": {"store": "gs://bucket/x"}},
        {"profile": "tiny", "options": {"store": "s3:/typo"}},
        {"profile": "tiny", "options": {"smoke": "perhaps"}},
        {"profile": "tiny", "options": {"until": "../publish"}},
        {"profile": "tiny", "options": {"smok": True}},
    ],
    ids=str,
)
def test_the_form_refuses_what_could_not_run(parameters: dict[str, Any]) -> None:
    schema = schema_of(DEPLOYMENTS[0])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(parameters, schema)


@pytest.mark.parametrize(
    "parameters",
    [
        {"profile": "/srv/recipes/ours.yaml"},
        {"profile": "micro", "options": {"overrides": ["branches.llama.distill.recipe.steps=2"], "smoke": True}},
        {"profile": "micro", "options": {"store": "s3://medius/store", "until": "corpus-qwen"}},
        {"profile": "micro", "options": {"store": "/data/store", "until": None}},
    ],
    ids=str,
)
def test_the_form_takes_what_can_run(parameters: dict[str, Any]) -> None:
    schema = schema_of(DEPLOYMENTS[0])
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(parameters)] == []


def test_options_of_the_command_line_that_have_another_form_are_one_sentence() -> None:
    with pytest.raises(BadInputError, match=r"--until '\.\./x' is no stage's label"):
        RecipeOptions.of(until="../x")


def test_the_store_of_a_stack_takes_the_place_of_a_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDIUS_STORE", raising=False)
    own = load_profile("micro").store
    monkeypatch.setenv("MEDIUS_STORE", "s3://medius/store")
    assert load_profile("micro").store == "s3://medius/store"
    assert load_profile("micro", store="elsewhere").store == "elsewhere"
    assert own not in {"s3://medius/store", "elsewhere"}
