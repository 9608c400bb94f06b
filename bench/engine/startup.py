"""What a first call waits for: `import attrib`, `import torch`, all names of attrib, and the fetched SmolLM2.

    python bench/engine/startup.py [RUNS]

Each figure is the median over fresh processes of that process's own CPU time, so that a busy machine
does not count.
"""

import statistics
import subprocess
import sys

CASES = {
    "import attrib": "import attrib",
    "import torch": "import torch",
    "all of attrib": "import torch; from attrib import *",
    "all of attrib; load smollm2-135m": "import torch; from attrib import *; load_model('smollm2-135m')",
}


def cpu_seconds(code: str) -> float:
    """CPU time of a fresh process that runs `code`."""
    script = f"import time\n{code}\nprint(time.process_time())"
    return float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


def main(runs: int) -> None:
    found: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(runs + 1):  # the first round warms the disk's cache
        for name, code in CASES.items():
            found[name].append(cpu_seconds(code))
    before = 0.0
    for name, seconds in found.items():
        median = statistics.median(seconds[1:])
        print(f"{name:42} {median:6.2f} s  (+{median - before:.2f} s)")
        before = median


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
