"""Write what is installed in this environment as a CycloneDX 1.5 bill of materials. Needs no network.

Usage: ``python docs/make_sbom.py [FILE]``, default ``sbom.json`` in the working directory, ``-`` for standard output.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from mlbot_core import __version__


def component(package: Distribution) -> dict[str, Any]:
    """Return one package: name, version, package URL (PEP 503 name) and licence where it tells."""
    name = package.metadata["Name"]
    plain = re.sub(r"[-_.]+", "-", name).lower()
    # a local part (+cpu) names a build and is a qualifier to nobody
    version = package.version.partition("+")[0]
    found: dict[str, Any] = {
        "type": "library",
        "name": name,
        "version": package.version,
        "purl": f"pkg:pypi/{plain}@{version}",
        "bom-ref": f"{plain}@{package.version}",
    }
    licence = package.metadata.get("License-Expression")
    if licence:
        found["licenses"] = [{"expression": licence}]
    return found


def bill() -> dict[str, Any]:
    """Return the bill of materials, in the order of names."""
    found = {one["bom-ref"]: one for one in map(component, distributions()) if one["name"] != "mlbot"}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "mlbot", "version": __version__}},
        "components": [found[ref] for ref in sorted(found)],
    }


def main() -> None:
    """Write it."""
    text = json.dumps(bill(), indent=2) + "\n"
    target = sys.argv[1] if len(sys.argv) > 1 else "sbom.json"
    if target == "-":
        sys.stdout.write(text)
        return
    Path(target).write_text(text, encoding="utf-8")
    print(f"{target}: {len(bill()['components'])} packages")


if __name__ == "__main__":
    main()
