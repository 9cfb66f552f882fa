"""`make audit`: known vulnerabilities of all versions that are locked, asked of PyPI's advisory database.

python -m flows.dependency_audit [FILE ...]

Without files: infra/constraints.txt and the locks of both images, which have packages besides.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tasks.artifacts.errors import MediusError

INFRA = Path(__file__).parents[1] / "infra"
LOCKED = (INFRA / "constraints.txt", INFRA / "locks" / "worker.txt", INFRA / "locks" / "orchestrator.txt")
_SECONDS = 600


def audit(locked: Path) -> list[str]:
    """One line for each advisory on a package of one file: its version and what mends it.

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
    files = [Path(name) for name in arguments] or LOCKED
    try:
        # One at a time: pip-audit takes none without hashes beside one with them.
        found = sorted({line for locked in files for line in audit(locked)})
    except MediusError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for line in found:
        print(line)
    print(f"{', '.join(str(locked) for locked in files)}: {len(found)} known vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
