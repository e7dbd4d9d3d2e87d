"""Write the model of a run as a plain state dict, for use without tardygrad.

The file is safetensors with the names, shapes and dtypes of the module:
model.load_state_dict(safetensors.torch.load_file(FILE)) takes it. The code of the
model is not needed here. The run may be going on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tardygrad.cli.parser import add_run

SUMMARY = "write a run's model as a plain state dict"

EXAMPLES = (
    ("tardygrad export runs/mine", "the newest checkpoint, into runs/mine/model.safetensors"),
    ("tardygrad export runs/mine --out model.safetensors", "elsewhere"),
    ("tardygrad export runs/mine --checkpoint 12", "an earlier one"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``tardygrad export``."""
    add_run(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write (default: model.safetensors in the run's directory)",
    )
    parser.add_argument(
        "--checkpoint",
        type=int,
        metavar="STEP",
        help="number of the checkpoint (default: the newest that is whole)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Export; returns the exit status."""
    from tardygrad.exporting import export

    made = export(arguments.run, arguments.out, checkpoint=arguments.checkpoint)
    for reason in made.passed_over:
        print(f"tardygrad: passed over: {reason}", file=sys.stderr)
    for name in made.left_out:
        print(f"tardygrad: left out, because it is no tensor: {name}", file=sys.stderr)
    place = f", fetched from {made.url}" if made.url else ""
    print(f"{made.path} (checkpoint {made.step}, {made.samples:,} samples{place})")
    return 0
