"""A batch of 10,240 on a small machine: `python -m tests.benchmarks.big_batch [--quick]`.

The demo's model in micro-batches of 256, the logits in blocks of rows, each step in a process of
its own (`tests.benchmarks.memory_probe`): peak memory against that of one plain step of 256, and,
in others that keep what they free, CPU seconds per pair. Floor of the time: about a third more than
the plain step's, as every pair is encoded twice and differentiated once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

from tests.benchmarks import report
from tests.benchmarks.memory_probe import TIGHT_MEMORY

MICRO_BATCH, LOGIT_ROWS = 256, 512


def probe(pairs: int, *memory: int) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.memory_probe", *map(str, (pairs, *memory))]
    # Giving memory back at once makes a step half as slow again.
    tight, timed = (
        json.loads(
            subprocess.run(
                command, env=os.environ | env, check=True, stdout=subprocess.PIPE, text=True
            ).stdout
        )
        for env in (TIGHT_MEMORY, {})
    )
    return {
        "peak_mb": tight["peak_bytes"] / 2**20,
        "estimated_mb": tight["estimated_bytes"] / 2**20,
        "cpu_ms_per_pair": 1000 * timed["cpu_s"] / pairs,
        "wall_ms_per_pair": 1000 * timed["wall_s"] / pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a batch of 1,024")
    large = 1024 if parser.parse_args().quick else 10_240
    figures = {
        f"plain step of {MICRO_BATCH}": probe(MICRO_BATCH),
        f"step of {large} in micro-batches": probe(large, MICRO_BATCH, LOGIT_ROWS),
    }
    plain, micro = figures.values()
    figures["ratio"] = {name: micro[name] / plain[name] for name in plain}
    names = list(plain)
    print(f"{'':<36}" + "".join(f"{name:>20}" for name in names))
    for case, values in figures.items():
        print(f"{case:<36}" + "".join(f"{values[name]:>20,.2f}" for name in names))
    report.write("big_batch", figures)


if __name__ == "__main__":
    main()
