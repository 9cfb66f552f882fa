"""The verbs of `medius` for those who run the stack: up, down, approve, s3-check, gc."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from flows.addresses import DEFAULT_STORE
from tasks.artifacts.errors import BadInputError
from tasks.artifacts.store import open_store


def add_commands(app: typer.Typer, console: Console) -> None:
    """Adds the verbs to the command."""

    @app.command()
    def up(
        prefect_port: Annotated[
            int | None, typer.Option("--prefect-port", help="Where Prefect listens; 4200, or as the last time.")
        ] = None,
        s3_port: Annotated[
            int | None,
            typer.Option(
                "--s3-port",
                help="Where S3 listens; 8333, or as the last time. Takes five ports from there, and five 10000 higher.",
            ),
        ] = None,
    ) -> None:
        """Start an S3 server, Prefect and its workers on this machine, deploy the recipes, print how to reach them."""
        from flows.stack import Stack

        Stack(console).up(prefect_port, s3_port)

    @app.command()
    def down() -> None:
        """Stop what `medius up` started in this folder, and nothing else; data and logs stay."""
        from flows.stack import Stack

        Stack(console).down()

    @app.command()
    def approve(
        run: Annotated[
            str | None, typer.Argument(help="The waiting run, by id or name; without one, those that wait are listed.")
        ] = None,
        reject: Annotated[bool, typer.Option("--reject", help="Cancel it instead; what is finished stays.")] = False,
    ) -> None:
        """Let a run go on that waits for an approval before an expensive stage, on the server of Prefect's settings."""
        from flows.answering import answer
        from flows.prefect_settings import configured_server

        answer(configured_server(), open_store(DEFAULT_STORE), run, reject=reject, console=console)

    @app.command("s3-check")
    def s3_check(
        uri: Annotated[str, typer.Argument(help="s3://bucket/prefix; endpoint and keys from the AWS_* variables.")],
    ) -> None:
        """Prove that an object store keeps what a run relies on; a line a check, exit code 2 where one fails."""
        from tasks.artifacts.s3_check import S3Check

        failed = []
        for finding in S3Check(uri).run():
            mark = "ok   " if finding.ok else "FAILS"
            console.print(f"{mark} {finding.check:18} {finding.detail}", soft_wrap=True, markup=False)
            failed += [] if finding.ok else [finding.check]
        if failed:
            raise BadInputError(
                f"{uri} fails {', '.join(failed)}; mend that, or use AWS S3, SeaweedFS, MinIO or a local directory"
            )

    @app.command()
    def gc(
        store: Annotated[str, typer.Option("--store", help="s3://bucket/prefix or a directory.")] = DEFAULT_STORE,
        profile: Annotated[
            list[str] | None,
            typer.Option(
                "--profile",
                help="Also keep this profile's artifacts; those of configs/ are kept anyway. Repeatable.",
            ),
        ] = None,
        keep_days: Annotated[
            float, typer.Option("--keep-days", min=0, help="Keep what runs of the last days made or used.")
        ] = 30,
        grace_hours: Annotated[
            float, typer.Option("--grace-hours", min=0, help="Keep whatever was written in the last hours.")
        ] = 24,
        delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this it is only listed.")] = False,
    ) -> None:
        """List what no profile, retained run or lease needs: artifacts, lost attempts, checkpoints, scratch, inputs."""
        from flows.collection import collect

        collect(open_store(store), console, profile or (), keep_days, grace_hours, delete=delete)
