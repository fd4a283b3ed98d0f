"""`python -m benchmarks claims --family adapters --json`, `python -m benchmarks peers --family front --json`."""

import argparse
import dataclasses
import importlib
import json
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FAMILIES = ("adapters", "sharded", "lowcomm", "moe", "rl", "remote", "generation", "data", "front", "merge")


def claim_files(family: str | None = None) -> dict[str, str]:
    """Key of each claim -> its module, of one family or of all."""
    files = sorted((HERE / "claims").glob(f"{family or '*'}/*.py"))
    return {file.stem: f"benchmarks.claims.{file.parent.name}.{file.stem}" for file in files if file.stem != "__init__"}


def peer_files(family: str | None = None) -> list[str]:
    """The modules of the comparisons, of one family or of all."""
    files = sorted((HERE / "peers").glob(f"{family or '*'}.py"))
    return [f"benchmarks.peers.{file.stem}" for file in files if file.stem != "__init__"]


def claim_lines(family: str | None, key: str | None, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One result a claim: that of the first seed, over all seeds a claim holds only if it always does."""
    for name, module in claim_files(family).items():
        if key not in (None, name):
            continue
        results = [_claim(name, module, seed) for seed in seeds]
        line = results[0]
        if len(seeds) > 1:
            measured = [each["measured"] for each in results if each["measured"] is not None]
            line |= {
                "holds": all(each["holds"] for each in results),
                "control_holds": any(each["control_holds"] for each in results),
                "seconds": sum(each["seconds"] for each in results),
                "seeds": list(seeds),
                "spread": max(measured) - min(measured) if measured else None,
            }
        yield line


def _claim(key: str, module: str, seed: int) -> dict[str, Any]:
    started = time.monotonic()
    try:
        return dataclasses.asdict(importlib.import_module(module).run(seed))
    except Exception as error:
        traceback.print_exc()
        empty = {"key": key, "paper": "", "measured": None, "baseline": None, "control_holds": False, "holds": False}
        return empty | {"seconds": time.monotonic() - started, "error": f"{type(error).__name__}: {error}"}


def peer_lines(family: str | None) -> Iterator[dict[str, Any]]:
    """One result a row."""
    for module in peer_files(family):
        for row in importlib.import_module(module).rows():
            yield dataclasses.asdict(row)


def show(line: dict[str, Any]) -> str:
    """A line for a person."""
    if "key" in line:
        verdict = "holds" if line["holds"] else "does not hold"
        control = ", and so does its control" if line["control_holds"] else ""
        numbers = f"measured {line['measured']}, baseline {line['baseline']}"
        return f"{line['key']}: {verdict}{control} ({numbers}, {line['seconds']:.0f} s) {line.get('error', '')}".rstrip()
    numbers = ", ".join(f"{name} {line[name]:.4g}" for name in ("ours", "peer", "limit", "target") if line[name] is not None)
    return f"{line['what']}: {numbers} {line['unit']} (spread {line['spread']:.2g})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run claims or comparisons and print one line each; 0 whatever they come to, for a claim is reported as it is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("claims", "peers"):
        options = kinds.add_parser(kind)
        options.add_argument("--family", choices=FAMILIES, help="one family (default: all)")
        options.add_argument("--json", action="store_true", help="one JSON object a line")
        if kind == "claims":
            options.add_argument("--key", help="one claim (default: all)")
            options.add_argument("--seed", type=int, default=0, help="the first seed (default: 0)")
            options.add_argument("--seeds", type=int, default=1, help="how many seeds; more than one adds the spread")
    given = parser.parse_args(arguments)
    if given.kind == "claims":
        if given.seeds < 1:
            parser.error("--seeds takes 1 or more")
        lines = claim_lines(given.family, given.key, range(given.seed, given.seed + given.seeds))
    else:
        lines = peer_lines(given.family)
    printed = 0
    for line in lines:
        print(json.dumps(line) if given.json else show(line), flush=True)
        printed += 1
    if not printed:
        print(f"no {given.kind} here yet", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
