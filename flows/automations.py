"""Makes the alerts of infra/automations.yaml on the server that PREFECT_API_URL names; again: brings them up to date.

python -m flows.automations infra/automations.yaml

Known by their names: those of the file are updated, what someone made beside them is left alone. MEDIUS_ALERT_BLOCK
names the notification block that they tell; without it an automation that exists keeps the actions it has.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import ActionTypes, DoNothing, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.exceptions import ObjectNotFound
from pydantic import Field, ValidationError

from flows.prefect_settings import configured_server
from flows.stack_services import ALERT_BLOCK_VARIABLE
from tasks.artifacts.errors import BadInputError, MediusError
from tasks.artifacts.frozen import Frozen

TAG = "medius"
_BODY = """{{ automation.description }}
{% if flow_run %}{{ flow_run.name }}: {{ flow_run.state.message }}
{{ flow_run | ui_url }}{% endif %}"""


class MissingBlockError(BadInputError):
    """The notification block that is to be told does not exist."""


class Alert(Frozen):
    """One entry of the file."""

    name: str
    description: str
    trigger: dict[str, Any]
    """As Prefect's EventTrigger has it."""

    def automation(self, actions: list[ActionTypes], enabled: bool) -> AutomationCore:
        """The same for Prefect."""
        within = timedelta(seconds=self.trigger["within"])
        trigger = EventTrigger.model_validate({**self.trigger, "within": within})
        return AutomationCore(
            name=self.name,
            description=self.description,
            enabled=enabled,
            tags=[TAG],
            trigger=trigger,
            actions=actions,
        )


class AlertFile(Frozen):
    """The whole file."""

    automations: tuple[Alert, ...] = Field(min_length=1)


def read_alerts(file: Path) -> tuple[Alert, ...]:
    """The alerts of a file. Raises BadInputError where it is none."""
    try:
        return AlertFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))).automations
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise BadInputError(
            f"{file} is no file of automations ({' '.join(str(error).split())}); see infra/automations.yaml"
        ) from error


def deploy_alerts(alerts: tuple[Alert, ...], block: str | None = None) -> dict[str, str]:
    """Creates or updates each; returns what was done by name.

    Args:
        block: type and name of a notification block, as slack-webhook/oncall.

    Raises:
        MissingBlockError: the server has no such block.
    """
    done = {}
    with get_client(sync_client=True) as client:
        notify = _notification(client, block) if block else None
        for alert in alerts:
            found = client.read_automations_by_name(alert.name)
            if not found:
                client.create_automation(alert.automation([notify or DoNothing()], enabled=True))
                done[alert.name] = "created"
                continue
            first, *doubles = found
            for double in doubles:
                client.delete_automation(double.id)
            actions: list[ActionTypes] = [notify] if notify is not None else first.actions
            client.update_automation(first.id, alert.automation(actions, enabled=first.enabled))
            done[alert.name] = "up to date"
    return done


def _notification(client: SyncPrefectClient, block: str) -> SendNotification:
    kind, _, name = block.partition("/")
    try:
        found = client.read_block_document_by_name(name, kind)
    except ObjectNotFound as error:
        raise MissingBlockError(
            f"{ALERT_BLOCK_VARIABLE} is {block!r}, and the Prefect server has no such block; name TYPE/NAME as "
            f'"prefect block ls" lists them, or make it on the dashboard under Blocks'
        ) from error
    return SendNotification(block_document_id=found.id, subject="{{ automation.name }}", body=_BODY)


def main() -> None:
    """What the module does as a program."""
    if len(sys.argv) != 2:
        sys.exit("name the file with the alerts: python -m flows.automations infra/automations.yaml")
    try:
        configured_server().require()
        for name, what in deploy_alerts(read_alerts(Path(sys.argv[1])), os.environ.get(ALERT_BLOCK_VARIABLE)).items():
            print(f"{name}: {what}")
    except MediusError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
