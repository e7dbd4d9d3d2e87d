"""docs/studies.md and its pictures: what of them comes from the summaries."""

from __future__ import annotations

import re
from pathlib import Path

from studies import pictures, tables
from studies.base import Study
from studies.summaries import Summary

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "studies.md"
REMARK = "Output of make reproduce; change nothing by hand."


def write(study: Study, summary: Summary | None) -> None:
    """Write a study's table into the page, and draw its picture; without a summary say so.

    Raises:
        ValueError: the page has no place for it.
    """
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(filled(page, study.name, tables.block(study, summary)), encoding="utf-8")
    if summary is not None:
        pictures.draw(study, summary, DOCS / "images" / f"study-{study.name}.svg")


def filled(page: str, name: str, block: str) -> str:
    """The page with ``block`` in the study's place.

    Raises:
        ValueError: it has none, or several.
    """
    begin, end = f"<!-- study {name}: begin. {REMARK} -->", f"<!-- study {name}: end -->"
    pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"{PAGE.name} has no lines {begin!r} and {end!r}, or several of them")
    return pattern.sub(lambda _: f"{begin}\n\n{block}\n\n{end}", page)
