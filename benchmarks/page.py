"""Write the parts of README.md that follow from results:  python benchmarks/page.py

Each part stands between two marks there, and is made of files in results/ by the module that knows them.
"""

from __future__ import annotations

import json
from pathlib import Path

import comparison_tables
import measured_tables
from comparison_records import RESULTS, read_records

PAGE = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- benchmarks/page.py writes {} from here -->", "<!-- {} to here -->"


def parts() -> dict[str, str]:
    """Return each part, by the name in its marks."""
    rows = {
        name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
        for name in ("attention-inside", "fragility")
    }
    return {
        "comparison": comparison_tables.page_part(read_records()),
        "attention-inside": measured_tables.inside_part(rows["attention-inside"]),
        "fragility": measured_tables.fragility_part(rows["fragility"]),
    }


def written(page: str) -> str:
    """Return the page with all parts as they follow from the results.

    Raises:
        ValueError: the page lacks a part's marks.
    """
    for name, part in parts().items():
        begin, end = BEGIN.format(name), END.format(name)
        before, has_begin, rest = page.partition(begin)
        _, has_end, after = rest.partition(end)
        if not has_begin or not has_end:
            raise ValueError(f"the page lacks {begin} and {end} behind it")
        page = f"{before}{begin}\n\n{part}\n\n{end}{after}"
    return page


def main() -> None:
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
