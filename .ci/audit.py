"""Checks what the package is built on: its own code, known holes.

What needs the network is skipped with a message where that cannot be reached.
"""

import json
import pathlib
import subprocess
import sys

BIN = pathlib.Path(sys.executable).parent


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a tool of this environment."""
    program, *arguments = command
    return subprocess.run([BIN / program, *arguments], capture_output=True, text=True)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Returns the end of what a tool printed."""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"status {done.returncode}"


def code() -> list[str]:
    """Returns what bandit finds in the package, of medium severity and above."""
    # B610 takes whatever is called `extra` for a query of Django's
    command = ("bandit", "--quiet", "-ll", "--skip=B610", "--recursive", "dpa_jax")
    done = run(*command)
    return [done.stdout or done.stderr] if done.returncode else []


def advisories() -> list[str]:
    """Returns the packages of this environment that have known vulnerabilities."""
    done = run(
        "pip-audit", "--skip-editable", "--progress-spinner=off", "--format=json"
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"skipped: known vulnerabilities, as pip-audit ends: {last_line(done)}")
        return []
    skipped = [package for package in packages if "skip_reason" in package]
    if skipped:
        print(
            f"skipped: known vulnerabilities of {len(skipped)} of {len(packages)} "
            f"packages, the first for this reason: {skipped[0]['skip_reason']}"
        )
    return [
        f"{package['name']} {package['version']}: {hole['id']}, mended in "
        f"{', '.join(hole['fix_versions']) or 'no version'}"
        for package in packages
        for hole in package.get("vulns", ())
    ]


if __name__ == "__main__":
    found = [*code(), *advisories()]
    print("\n".join(found) or "nothing found")
    sys.exit(bool(found))
