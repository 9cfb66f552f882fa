"""Makes the work pools of infra/kubernetes, and the deployments and alerts, on the server that PREFECT_API_URL names.

python -m flows.kubernetes_deploy infra/prefect.yaml infra/kubernetes/pools.yaml

A deployment is run in the folder in which this was called, so that is to be one of the image: see
infra/kubernetes/deploy.yaml.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from pydantic import Field, ValidationError

from flows.prefect_settings import configured_server
from flows.stack import CHECKOUT
from flows.stack_deploy import deploy
from tasks.artifacts.errors import BadInputError, MediusError
from tasks.artifacts.frozen import Frozen

TEMPLATE = CHECKOUT / "infra" / "kubernetes" / "job-template.json"
NOT_HERE = {"every-minute", "every-minute-medius"}
"""Deployments that a cluster does without: a pod sees no other's processes, and the workers' observer tells of those
that end without a word."""


class KubernetesPool(Frozen):
    """A work pool of pools.yaml."""

    description: str = ""
    variables: dict[str, Any] = Field(default_factory=dict)
    """Defaults of job variables, in the place of the template's; names in `env` are added to the template's."""


def read_pools(file: Path) -> dict[str, KubernetesPool]:
    """The pools of a file by name.

    Raises:
        BadInputError: it is not there, or is no such file.
    """
    try:
        entries = yaml.safe_load(file.read_text())
        return {name: KubernetesPool.model_validate(entry) for name, entry in entries.items()}
    except FileNotFoundError:
        raise BadInputError(f"there is no {file}; name a file like infra/kubernetes/pools.yaml") from None
    except (AttributeError, ValidationError, yaml.YAMLError) as error:
        raise BadInputError(
            f"{file} is no list of pools ({error}); compare it with infra/kubernetes/pools.yaml"
        ) from error


def base_job_template(name: str, pool: KubernetesPool) -> dict[str, Any]:
    """The template of infra/kubernetes with a pool's own defaults.

    Raises:
        BadInputError: the pool sets a variable that the template does not have, or to what it cannot be.
    """
    template: dict[str, Any] = json.loads(TEMPLATE.read_text())
    schema = template["variables"]
    properties = schema["properties"]
    if unknown := sorted(pool.variables.keys() - properties.keys()):
        raise BadInputError(
            f"the pool {name} sets {', '.join(unknown)}, which {TEMPLATE.name} does not have; it has "
            f"{', '.join(sorted(properties))}"
        )
    try:
        jsonschema.validate(pool.variables, schema)
    except jsonschema.ValidationError as error:
        raise BadInputError(
            f"the pool {name} sets {error.absolute_path[0]} to what it cannot be: {error.message}"
        ) from error
    for variable, value in pool.variables.items():
        entry = properties[variable]
        entry["default"] = {**entry["default"], **value} if variable == "env" else value
    return template


def make_kubernetes_pools(pools: dict[str, KubernetesPool]) -> None:
    """Makes work pools whose flow runs are jobs; those that exist get the new template.

    Raises:
        BadInputError: one exists whose flow runs are something else.
    """
    templates = {name: base_job_template(name, pool) for name, pool in pools.items()}
    with get_client(sync_client=True) as client:
        for name in pools:
            try:
                kind = client.read_work_pool(name).type
            except ObjectNotFound:
                continue
            if kind != "kubernetes":
                raise BadInputError(
                    f"the work pool {name} exists with type {kind}; delete it (prefect work-pool delete {name}) with "
                    f"its deployments, or deploy to another server"
                )
        for name, pool in pools.items():
            wanted = WorkPoolCreate(
                name=name, type="kubernetes", description=pool.description, base_job_template=templates[name]
            )
            client.create_work_pool(wanted, overwrite=True)


def main(prefect_file: Path, pools_file: Path) -> None:
    """Deploys everything."""
    configured_server().require()
    make_kubernetes_pools(read_pools(pools_file))
    deploy(prefect_file, without=NOT_HERE)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except MediusError as error:
        sys.exit(str(error))
