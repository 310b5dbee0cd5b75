"""The command ``bsym-model check``."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bsym_bids.errors import ParticipantsFailedError, UsageError
from bsym_bids.untrusted import say

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_check(commands: Commands) -> None:
    """Add ``check`` to the commands of ``bsym-model``."""
    text = "does a model know your data? what it can predict of them, and a verdict"
    command = commands.add_parser("check", help=text, description=text)
    command.set_defaults(run=_check)
    command.add_argument(
        "derivatives",
        type=Path,
        metavar="DERIVATIVES",
        help="output folder of the participant level, into which the tables are written",
    )
    command.add_argument("--model", metavar="NAME", help="the model (default: as bsym-bids)")
    command.add_argument("--model-dir", type=Path, metavar="DIR", help="folder with its files")
    command.add_argument(
        "--participant-label", nargs="+", default=[], metavar="LABEL", help="only these"
    )
    command.add_argument(
        "--n-participants",
        type=int,
        default=20,
        metavar="N",
        help="so many at most, drawn with the seed; 0 for all (default: 20)",
    )
    command.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    command.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: all)")
    command.add_argument(
        "--networks",
        action="store_true",
        help="also: how well ROI embeddings tell networks, beside codes and data without a model",
    )
    command.add_argument(
        "--print-only", action="store_true", help="print the result, but write no tables"
    )


def _check(arguments: argparse.Namespace) -> None:
    from bsym_bids.model.checking import check_model
    from bsym_bids.model.fetch import resolve_or_fetch
    from bsym_bids.model.weights import default_model_name
    from bsym_bids.outputs.checks import report, write_check

    if arguments.n_participants < 0 or arguments.seed < 0 or (arguments.threads or 1) < 1:
        raise UsageError(
            "--n-participants and --seed must not be negative, --threads must be above 0"
        )
    check = check_model(
        resolve_or_fetch(arguments.model or default_model_name(), arguments.model_dir),
        arguments.derivatives,
        participants=arguments.participant_label,
        n_participants=arguments.n_participants,
        seed=arguments.seed,
        threads=arguments.threads,
        networks=arguments.networks,
        say=partial(say, file=sys.stderr),
    )
    for line in report(check):
        say(line)
    if not arguments.print_only:
        print()
        for path in write_check(check, arguments.derivatives):
            say(path)
    if check.problems:
        raise ParticipantsFailedError(
            f"{len(check.problems)} run(s) or scan(s) could not be checked, see above"
        )
