"""`python -m bench.gpu.collect FOLDER --out FOLDER STEP=STATUS ...`: what the steps wrote, as one JSON and one table, named by the GPU."""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.output import write

STATUS = {0: "right", 1: "wrong", 124: "ran out of its time", 137: "ran out of its time"}
"""How a step's process ended."""


def collected(folder: Path, statuses: Mapping[str, int]) -> dict[str, Any]:
    """All steps; of one that wrote nothing, how it ended."""
    found: dict[str, Any] = {}
    for step, status in statuses.items():
        written = folder / f"{step}.json"
        found[step] = {"status": STATUS.get(status, f"failed with status {status}")}
        if written.exists():
            found[step] |= json.loads(written.read_text())
        elif status == 1:
            found[step]["status"] = "failed"
    device = next((each["device"] for each in found.values() if "device" in each), "unknown")
    return {"device": device, "steps": found}


def table(found: Mapping[str, Any]) -> str:
    """Every figure in a line."""
    lines = [f"# {found['device']}", "", "Written by `bash bench/gpu.sh`.", ""]
    for step, each in found["steps"].items():
        lines += [f"## {step}: {each['status']}", ""]
        if faults := each.get("faults"):
            lines += [*(f"- {fault}" for fault in faults), ""]
        if rows := [f"| {name} | {_text(value)} |" for name, value in each.get("figures", {}).items()]:
            lines += ["| what | found |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_text(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value).partition("\n")[0].replace("|", "/")


def slug(device: str) -> str:
    """A file's name from a device's."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def main(argv: list[str] | None = None) -> int:
    """Write both files, and say where; 1 where a step was not right."""
    said = argparse.ArgumentParser(prog="python -m bench.gpu.collect")
    said.add_argument("folder", type=Path)
    said.add_argument("--out", type=Path, required=True)
    said.add_argument("statuses", nargs="+", metavar="STEP=STATUS")
    asked = said.parse_args(argv)
    statuses = {step: int(status) for step, _, status in (each.partition("=") for each in asked.statuses)}
    found = collected(asked.folder, statuses)
    name = asked.out / slug(found["device"])
    write(name.with_suffix(".json"), found)
    name.with_suffix(".md").write_text(table(found))
    print(table(found))
    print(f"{name.with_suffix('.json')}, {name.with_suffix('.md')}")
    if wrong := [step for step, status in statuses.items() if status]:
        print("not right: " + ", ".join(f"{step} ({found['steps'][step]['status']})" for step in wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
