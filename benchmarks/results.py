"""Train the models that the series ships, and write the results table of the README from their cards.

python benchmarks/results.py            train what is missing from data/pretrained, then write the table
python benchmarks/results.py moons      train these anew
python benchmarks/results.py --table    write the table only
"""

import argparse
import re
from pathlib import Path

import torch

from flowlib import checkpoints, data, models, training

ROOT = Path(__file__).resolve().parents[1]
SEED, TEST_SEED, TEST_POINTS = 0, 1, 20_000
RECIPES = {  # name: the density that a default realnvp_2d is fitted to with fit's defaults
    "moons": data.TwoMoons(noise=0.05),
    "sinusoid": data.Sinusoid(noise=0.1),
}


def train(name, density):
    torch.manual_seed(SEED)
    flow = models.realnvp_2d()
    history = training.fit(flow, density, seed=SEED)
    x = density.sample(TEST_POINTS, seed=TEST_SEED)
    with torch.no_grad():
        gap = (density.log_prob(x) - flow.log_prob(x)).double()
    results = {
        "data": repr(density),
        "entropy_nats": round(density.entropy, 4),
        "gap_nats": round(gap.mean().item(), 4),
        "gap_standard_error": round((gap.std() / len(gap) ** 0.5).item(), 4),
        "test_points": TEST_POINTS,
        "parameters": sum(p.numel() for p in flow.parameters()),
        "steps": len(history.loss),
        "seconds": round(history.seconds, 1),
    }
    checkpoints.save(flow, checkpoints.PRETRAINED / f"{name}.safetensors", seed=SEED, results=results)
    print(f"{name}: gap {results['gap_nats']} +- {results['gap_standard_error']} nats after {results['seconds']} s")


def table():
    """The README's results table, from the cards in data/pretrained."""
    lines = [
        "| checkpoint | model | data | parameters | gap to the truth (nats) | steps | training | seed | hardware | date |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(checkpoints.PRETRAINED.glob("*.json")):
        card = checkpoints.read_card(path.stem)
        r = card["results"]
        lines.append(
            f"| `{path.stem}` | `{card['builder']}` | {r['data']} | {r['parameters']:,} | {r['gap_nats']:.4f} ± {r['gap_standard_error']:.4f} "
            f"| {r['steps']:,} | {r['seconds']:.0f} s | {card['seed']} | {card['hardware']} | {card['date']} |"
        )
    return "\n".join(lines)


def with_table(text):
    """The README's text with the table between its two markers replaced."""
    return re.sub(r"(<!-- results -->\n).*(\n<!-- end of results -->)", lambda m: m[1] + table() + m[2], text, flags=re.DOTALL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--table", action="store_true", help="write the table only")
    args = parser.parse_args()
    if unknown := set(args.names) - set(RECIPES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    missing = [name for name in RECIPES if not (checkpoints.PRETRAINED / f"{name}.safetensors").exists()]
    for name in [] if args.table else args.names or missing:
        train(name, RECIPES[name])
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text()))


if __name__ == "__main__":
    main()
