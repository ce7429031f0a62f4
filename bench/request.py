"""How long a message takes to read, and how that grows with its length.

    python bench/request.py [--rounds 40] [--json]

Reads the Monday message, a long mail, and texts made to be slow (all digits, all markup, all commas) at 1, 4, 16 and
64 KiB. Promises: under 50 ms for a typical message (median), and time that grows with the length, not its square.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from datetime import UTC, date, datetime

from groundplane.adapters.catalog_files import load_catalogue
from groundplane.adapters.jargon import load_terms
from groundplane.domain.intake.lexicon import Lexicon, lexicon_of
from groundplane.domain.intake.read import read

NOW = datetime(2026, 11, 23, 9, tzinfo=UTC)
TYPICAL_MS_MAX = 50.0
GROWTH_MAX = 8.0
"""Four times the length may take eight times as long: the machine is noisy; a square would be sixteen."""
MONDAY = (
    "Hey, we need 8 GPU VMs provisioned by Wednesday for a fine-tuning job. We also need a private endpoint for the "
    "model's inference API, and can you set up TPM monitoring? Thanks!"
)
SHAPES = {
    "mail": MONDAY + "\n\n",
    "digits": "1234567890",
    "markup": "<a",
    "commas": "a, b and c, ",
    "counts": "8 GPUs 4 nodes with 8 h100 each, ",
    "list": "- 8 gpus\n",
    "dates": "by friday until 12/01/2026 ",
    "types": "Standard_NC24ads_A10_v4 ",
}
SIZES = (1024, 4096, 16_384, 65_536)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=40, help="readings of the typical message")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    catalogue = load_catalogue()
    lexicon = lexicon_of(catalogue.hardware, catalogue.models, load_terms(), date(2026, 11, 23))
    figures = measure(lexicon, options.rounds)
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        for name, value in figures.items():
            print(f"{name:<40} {value:>10.2f}")
    slow = figures["typical_median_ms"] >= TYPICAL_MS_MAX
    steep = [name for name, value in figures.items() if name.endswith("growth_16k_to_64k") and value > GROWTH_MAX]
    if slow or steep:
        sys.exit(f"too slow: typical {figures['typical_median_ms']:.1f} ms, steep growth in {steep}")


def measure(lexicon: Lexicon, rounds: int) -> dict[str, float]:
    """Each figure by name, its unit last; growth is the time for 64 KiB by that for 16 KiB."""
    _took_ms(MONDAY, lexicon)  # patterns are compiled once, on first use
    typical = [_took_ms(MONDAY, lexicon) for _ in range(rounds)]
    figures = {"typical_median_ms": statistics.median(typical), "typical_max_ms": max(typical)}
    for name, piece in SHAPES.items():
        took = {}
        for size in SIZES:
            text = (piece * (size // len(piece) + 1))[:size]
            took[size] = min(_took_ms(text, lexicon) for _ in range(2))
            figures[f"{name}_{size // 1024}k_ms"] = took[size]
        figures[f"{name}_growth_16k_to_64k"] = took[65_536] / took[16_384]
    return figures


def _took_ms(text: str, lexicon: Lexicon) -> float:
    began = time.perf_counter()
    read(text, lexicon, NOW)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
