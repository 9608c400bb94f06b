"""`python -m bench.gpu STEP --out FILE`: one step of the first day, as JSON. Exits 1 where something is wrong."""

import argparse
import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Run a step."""
    from bench.gpu.place import place
    from bench.gpu.record import record_of
    from bench.gpu.steps import STEPS
    from bench.output import write

    said = argparse.ArgumentParser(prog="python -m bench.gpu")
    said.add_argument("step", choices=STEPS)
    said.add_argument("--out", type=Path, required=True)
    said.add_argument("--pretend", action="store_true", help="on a device that is not there, tiny")
    asked = said.parse_args(argv)
    with place(asked.pretend) as where:
        found = STEPS[asked.step](where)
        record = record_of(where, found.figures, found.faults)
    write(asked.out, record)
    for fault in found.faults:
        print(f"{asked.step}: {fault}", file=sys.stderr)
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
