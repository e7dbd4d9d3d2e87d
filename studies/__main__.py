"""``python -m studies [STUDY ...]``: run studies, write their summaries, tables and pictures."""

from __future__ import annotations

import argparse
import os
import sys

from studies import pages, registry, summaries
from tardygrad.errors import TardygradError


def main(words: list[str] | None = None) -> int:
    """Run the studies that were asked for; what was run before is not run again.

    Returns:
        0; 1 if a run failed; 2 if there is no such study.
    """
    parser = argparse.ArgumentParser(
        prog="python -m studies",
        description="Run studies of effects, and write docs/studies.md's tables and pictures.",
    )
    parser.add_argument("studies", nargs="*", help="names of studies; all without any")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--list", action="store_true", help="only name the studies")
    parser.add_argument(
        "--write", action="store_true", help="run nothing: tables and pictures from the summaries"
    )
    arguments = parser.parse_args(words)
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {arguments.jobs}")
    known = registry.studies()
    for name in arguments.studies:
        if name not in known:
            parser.error(f"there is no study {name!r}; there are: {', '.join(known)}")
    chosen = [known[name] for name in arguments.studies or known]
    if arguments.list:
        for study in chosen:
            print(f"{study.name}: {study.question}")
        return 0
    try:
        for study in chosen:
            if not arguments.write:
                found = summaries.reproduce(study, arguments.jobs, _tell)
                print(f"\n{study.name}: {summaries.save(found)}", file=sys.stderr)
            pages.write(study, summaries.load(study.name))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except TardygradError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def _tell(stage: str, done: int, of: int) -> None:
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{stage}, {done} of {of} runs", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
