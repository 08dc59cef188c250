"""The record book: test bits/dim of CIFAR-10 within so many seconds of training on one GPU.

python benchmarks/records.py                     write records.md from results/records.json
python benchmarks/records.py cifar10 --change "shifted crops" --commit 1a2b3c4
                                                 enter a flow's card first, shipped or at a path
"""

import argparse
import json
from pathlib import Path

from flowlib import checkpoints

ROOT = Path(__file__).resolve().parent
STORED, BOOK = ROOT / "results" / "records.json", ROOT / "records.md"
INTRODUCTION = """\
# Test bits/dim of CIFAR-10 within so many seconds on one GPU

An entry is a record if no earlier one has at most as many bits in at most as many seconds. The
seconds are those of the whole of `fit`, with evaluations and compilation, unless it says otherwise.
The bound is that of one draw of the noise, on the test set without duplicates, with the standard
error over its images. Each entry says what was changed since the one before: one change at a time,
where possible. Written by `python benchmarks/records.py` from `results/records.json`.

| test bits/dim | seconds | what was changed | steps | batch | images/s | hardware | seeds | date \
| commit |
|---|---|---|---|---|---|---|---|---|---|
"""


def entry(card: dict, change: str, commit: str) -> dict:
    """What the book keeps of a card."""
    results = card["results"]
    settings = results.get("training") or results["settings"]
    names = "bits_per_dim", "bits_per_dim_standard_error", "test_images", "seconds", "steps"
    kept = {name: results[name] for name in (*names, "parameters", "images_per_second")}
    made = {name: card[name] for name in ("hardware", "torch", "date")}
    said = {"change": change, "commit": commit, "seeds": [card["seed"]], "settings": settings}
    return kept | made | said


def is_record(new: dict, earlier: list[dict]) -> bool:
    """Whether none of the earlier ones is as good in as little time."""
    measures = "bits_per_dim", "seconds"
    return not any(all(old[name] <= new[name] for name in measures) for old in earlier)


def book(records: list[dict]) -> str:
    """The text of records.md."""
    rows = [
        f"| {r['bits_per_dim']:.4f} ± {r['bits_per_dim_standard_error']:.4f} "
        f"| {r['seconds']:,.0f} | {r['change']} | {r['steps']:,} | {r['settings']['batch_size']} "
        f"| {r['images_per_second']:,.0f} | {r['hardware']} | {', '.join(map(str, r['seeds']))} "
        f"| {r['date']} | {r['commit']} |\n"
        for r in records
    ]
    return INTRODUCTION + "".join(rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("flow", nargs="?", help="a shipped flow, or the path of one")
    parser.add_argument("--change", help="what is new since the last entry")
    parser.add_argument("--commit", help="of the code that trained it")
    args = parser.parse_args()
    records = json.loads(STORED.read_text()) if STORED.exists() else []
    if args.flow:
        if not (args.change and args.commit):
            parser.error("an entry needs --change and --commit")
        new = entry(checkpoints.read_card(args.flow), args.change, args.commit)
        if not is_record(new, records):
            parser.error("an earlier entry has at most as many bits in at most as many seconds")
        records.append(new)
        checkpoints.write(STORED, checkpoints.to_json(records, indent=1))
    checkpoints.write(BOOK, book(records).encode())


if __name__ == "__main__":
    main()
