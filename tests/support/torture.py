"""Many random attributions against torch.func: `python -m tests.support.torture --seed 0 --count 3000`, or `make torture`.

Each seed is one call (see torture_cases.py). Every seed whose answer is wrong is printed as a line that runs it alone.
"""

import argparse
import sys
import time
import traceback

import torch

from tests.support.torture_cases import BARE, VARIANTS, RefusedError, budget_fault_of, configuration, fault_of


def main() -> int:
    """Run them; 1 where some are wrong."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--seed", type=int, default=0)
    given.add_argument("--count", type=int, default=3000)
    given.add_argument("--bare", action="store_true", help="models without causal masks, norms or MLPs")
    options = given.parse_args()
    torch.set_num_threads(1)
    begun, wrong, refused = time.monotonic(), 0, 0
    for seed in range(options.seed, options.seed + options.count):
        case = configuration(seed, BARE if options.bare else VARIANTS)
        try:
            fault = fault_of(case) or (budget_fault_of(case) if seed % 8 == 0 else None)
        except RefusedError:
            refused += 1
            continue
        except Exception:
            fault = traceback.format_exc(limit=-4)
        if fault:
            wrong += 1
            print(f"python -m tests.support.torture {'--bare ' * options.bare}--seed {seed} --count 1  # {fault}\n    {case}", flush=True)
    print(f"{options.count} calls: {wrong} wrong, {refused} refused, {time.monotonic() - begun:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
