"""How long the fleet simulator takes: ten thousand edges for a simulated hour, on one core.

    python -m benchmarks.fleet_speed [--policies auto,cloud-only,...] [--edges 10000] [--profile]

The workload is ``simulator/fleet/examples/city.toml``: laptops, phones and Raspberry Pis on WiFi,
DSL, 4G and 5G, each of which asks about every quarter of an hour (an answer is some 120 tokens),
and four replicas with a GPU; ``auto`` is as it is there, other policies are put in its place for
all.
Prints CPU seconds of the whole run, reading of profiles and recording included.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from pathlib import Path
from typing import Any

from shared.config_file import read_table
from simulator.fleet.config import FleetConfig, parse_config
from simulator.fleet.simulation import run_fleet
from simulator.fleet.summary import summarise

CITY = Path(__file__).parent.parent / "simulator" / "fleet" / "examples" / "city.toml"
POLICIES: dict[str, dict[str, Any]] = {
    "auto": {},
    "auto-cost": {"policy": "auto", "aim": "cost"},
    "auto-quality": {"policy": "auto", "aim": "quality"},
    "cloud-only": {"policy": "cloud-only"},
    "blocking": {"policy": "blocking"},
    "optimistic": {"policy": "optimistic"},
    "verified": {"policy": "verified"},
    "standalone": {"policy": "standalone"},
}


def city(policy: str, edges: int) -> FleetConfig:
    """The example, with so many edges."""
    fields = read_table(CITY)
    whole = sum(group["count"] for group in fields["edges"])
    for group in fields["edges"]:
        count = max(1, round(group["count"] * edges / whole))
        group.update({"count": count} | POLICIES[policy])
    return parse_config(fields, CITY.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", default="auto")
    parser.add_argument("--edges", type=int, default=10_000)
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    options = parser.parse_args()
    for policy in options.policies.split(","):
        began = time.process_time()
        config = city(policy, options.edges)
        profile = cProfile.Profile()
        if options.profile:
            profile.enable()
        run = run_fleet(config)
        profile.disable()
        seconds = time.process_time() - began
        summary = summarise(run)
        print(
            f"{policy}: {seconds:.1f} s of CPU for {summary['edges']:,} edges and "
            f"{summary['simulated_seconds']:,.0f} simulated seconds: {summary['answers']:,} "
            f"answers, {summary['tokens']:,} tokens, {1e6 * seconds / summary['tokens']:.1f} µs "
            f"a token, cloud {summary['cloud']['utilisation']['mean']:.0%} busy",
            flush=True,
        )
        if options.profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
