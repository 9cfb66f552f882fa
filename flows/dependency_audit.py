"""`make audit`: known vulnerabilities of the versions in infra/constraints.txt, asked of PyPI's advisory database.

python -m flows.dependency_audit [FILE]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tasks.artifacts.errors import MediusError

LOCKED = Path(__file__).parents[1] / "infra" / "constraints.txt"
_SECONDS = 600


def audit(locked: Path) -> list[str]:
    """One line for each vulnerable package: versions, advisories and what mends them.

    Raises:
        MediusError: the database could not be asked, or not of every package.
    """
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--progress-spinner", "off"]
    try:
        ran = subprocess.run(
            [*command, "--format", "json", "--requirement", str(locked)],
            capture_output=True, text=True, check=False, timeout=_SECONDS,
        )  # fmt: skip
        dependencies = json.loads(ran.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        said = ran.stderr.strip().splitlines()[-1:] if not isinstance(error, subprocess.TimeoutExpired) else []
        why = said[0] if said else f"no answer in {_SECONDS} s"
        raise MediusError(
            f"{locked} was not audited, as the vulnerability service could not be asked ({why}); run it where "
            f"https://pypi.org can be reached"
        ) from error
    if skipped := [entry for entry in dependencies if "skip_reason" in entry]:
        raise MediusError(
            f"{locked} was not audited in full: of {len(skipped)} of {len(dependencies)} packages the index tells no "
            f"advisories ({skipped[0]['name']}: {skipped[0]['skip_reason']}); run it where pypi.org is reached"
        )
    return [
        f"{entry['name']} {entry['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version'}"
        for entry in dependencies
        for flaw in entry["vulns"]
    ]


def main(arguments: list[str]) -> int:
    """Prints what was found; 0 where nothing was."""
    locked = Path(arguments[0]) if arguments else LOCKED
    try:
        found = audit(locked)
    except MediusError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for line in found:
        print(line)
    print(f"{locked}: {len(found)} known vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
