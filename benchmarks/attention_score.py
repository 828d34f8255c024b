"""Does a text's relevance lie in what it names?  python benchmarks/attention_score.py --model NAME,CHECKPOINT

Emoji cut out of their white ground are put in pairs on photographs (or on white, as they were trained on) and asked for
by name; see diffclip_openclip.explain.score for what is measured. Checkpoints of one NAME are averaged, each NAME is
compared with the first, and the same models with shuffled weights are the control. Prints a Markdown table for each
combination of data, ground and method. `make quickstart COMPARE=1` or examples/emoji/compare.py train such checkpoints.

A map is as fine as the model's patches: the nano models see 4 x 4 of them, so that an object lies in 2 x 2 and its
outline cannot be hit. Scores compare models with the same patches.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from diffclip_openclip.bench.results import machine
from diffclip_openclip.explain.composed import SIDE, compose, photographs, read_cut_outs
from diffclip_openclip.explain.score import attention_score
from diffclip_openclip.explain.score_table import as_markdown
from diffclip_openclip.files import check_place, staged

DATA = Path(__file__).resolve().parents[1] / "examples" / "emoji" / "data" / "eval"


def grounds(name: str) -> dict[str, Image.Image]:
    """What objects are put on, by what it shows."""
    return photographs() if name == "photographs" else {"": Image.new("RGB", (SIDE, SIDE), "white")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="NAME,CHECKPOINT; repeatable")
    parser.add_argument(
        "--data", nargs="+", default=["unseen-vendor"], help=f"folders of {DATA.name}/, or any like them"
    )
    parser.add_argument("--ground", nargs="+", choices=("photographs", "white"), default=["photographs"])
    parser.add_argument("--method", nargs="+", choices=("chefer", "rollout", "gradcam"), default=["chefer"])
    parser.add_argument("--start-layer", type=int, help="default: the method's")
    parser.add_argument("--num-images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write the figures there")
    args = parser.parse_args()
    if args.output is not None:
        check_place(args.output)

    tables: list[dict[str, Any]] = []
    for data, ground, method in product(args.data, args.ground, args.method):
        pairs = compose(read_cut_outs(DATA / data), grounds(ground), args.num_images, args.seed)
        rows = attention_score(args.model, pairs, method, args.start_layer, args.seed)
        print(f"\n{data}, on {ground}, {method}, {len(pairs)} images\n\n{as_markdown(rows)}", flush=True)
        tables.append({"data": data, "ground": ground, "method": method, "rows": [asdict(row) for row in rows]})
    if args.output is not None:
        command = shlex.join(["python", *sys.argv])
        figures = {"command": command, "machine": machine("cpu"), "num_images": args.num_images, "tables": tables}
        with staged(args.output) as new:
            new.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
