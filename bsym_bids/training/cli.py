"""The commands ``bsym-model simulate`` and ``bsym-model pretrain``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsym_bids.errors import UsageError

if TYPE_CHECKING:
    from bsym_bids.training.pretrain import PretrainSettings

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


_AS_INIT = "default: as the contract of --init, else "


def add_simulate(commands: Commands) -> None:
    """Add ``simulate`` to the commands of ``bsym-model``."""
    text = "write simulated people as the participant level would, to train on"
    command = commands.add_parser("simulate", help=text, description=text)
    command.set_defaults(run=_simulate)
    command.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    command.add_argument(
        "--participants", type=int, default=200, metavar="N", help="how many (default: 200)"
    )
    command.add_argument("--first", type=int, default=1, metavar="N", help="number of the first")
    command.add_argument("--seed", type=int, default=0, help="the same seed, the same people")


def _simulate(arguments: argparse.Namespace) -> None:
    from bsym_bids.simulation.dataset import simulate_dataset

    labels = simulate_dataset(
        arguments.out, arguments.participants, arguments.seed, arguments.first
    )
    print(f"{arguments.out}: {len(labels)} simulated participants")


def add_pretrain(commands: Commands) -> None:
    """Add ``pretrain`` to the commands of ``bsym-model``."""
    text = "train a network on the outputs of the participant level; goes on where it was stopped"
    command = commands.add_parser(
        "pretrain",
        help=text,
        description=f"{text}. The result is a release in OUT/release, for --model-dir.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.set_defaults(run=_pretrain)
    command.add_argument("derivatives", type=Path, metavar="DERIVATIVES")
    command.add_argument("out", type=Path, metavar="OUT")
    result = command.add_argument_group("the result")
    result.add_argument("--name", default="own", help="name of the release")
    result.add_argument(
        "--notice", default="", help="sentence that every output of the model is to carry"
    )
    result.add_argument("--half", action="store_true", help="store weights in half precision")
    start = command.add_argument_group("where it starts")
    start.add_argument("--init", metavar="NAME", help="release to go on from (domain adaptation)")
    start.add_argument("--model-dir", type=Path, metavar="DIR", help="folder of that release")
    start.add_argument(
        "--start",
        choices=("connectivity", "random"),
        default="connectivity",
        help="without --init: weights that predict hidden ROIs from the group average, or random",
    )
    _add_schedule(command.add_argument_group("how it is trained"))
    _add_data(command.add_argument_group("what it is trained on"))


def _add_schedule(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--steps", type=int, default=2000, help="of the functional branches")
    group.add_argument("--structural-steps", type=int, default=1000, help="of the structural one")
    group.add_argument("--gate-steps", type=int, default=300, help="of the gate")
    group.add_argument("--batch-size", type=int, default=4, help="windows or connectomes of a step")
    group.add_argument(
        "--learning-rate", type=float, default=3e-5, help="peak, spatial transformer and Perceiver"
    )
    group.add_argument(
        "--side-learning-rate", type=float, default=1e-3, help="peak, temporal and context"
    )
    group.add_argument("--structural-learning-rate", type=float, default=5e-4, help="peak")
    group.add_argument("--gate-learning-rate", type=float, default=1e-3, help="peak")
    group.add_argument("--weight-decay", type=float, default=0.0, help="of AdamW")
    group.add_argument("--warmup-share", type=float, default=0.05, help="share of the steps")
    group.add_argument("--gradient-clip", type=float, default=1.0, help="largest gradient norm")
    group.add_argument(
        "--validate-every", type=int, default=100, help="steps between validation and checkpoint"
    )
    group.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    group.add_argument("--threads", type=int, default=1, help="of the CPU")
    group.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of products"
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where")


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--validation-share", type=float, default=0.1, help="share of participants held out"
    )
    group.add_argument(
        "--roi-share",
        type=float,
        nargs=2,
        default=(0.1, 0.4),
        metavar=("LEAST", "MOST"),
        help="hidden ROIs of a window",
    )
    group.add_argument("--frame-share", type=float, default=0.1, help="hidden frames")
    group.add_argument("--sample-share", type=float, default=0.15, help="hidden samples")
    group.add_argument("--edge-share", type=float, default=0.15, help="hidden pairs of ROIs")
    group.add_argument(
        "--keys-per-roi", type=int, default=4, help="frames of an ROI that the Perceiver reads"
    )
    group.add_argument(
        "--gate-label", metavar="COLUMN", help="column of participants.tsv to train the gate on"
    )
    group.add_argument(
        "--repetition-time",
        type=float,
        default=None,
        metavar="S",
        help=f"of the frames ({_AS_INIT}0.8)",
    )
    group.add_argument(
        "--scaling",
        choices=("robust", "zscore", "none"),
        default=None,
        help=f"of each ROI ({_AS_INIT}robust)",
    )
    group.add_argument("--window-step", type=int, default=100, help="frames between windows")
    group.add_argument(
        "--sc-convention",
        choices=("log10p1", "log10"),
        default=None,
        help=f"what is made of streamline counts ({_AS_INIT}log10p1)",
    )
    group.add_argument(
        "--volume-normalised",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"streamlines per mm3 of the two ROIs instead of counts ({_AS_INIT}no)",
    )


def _pretrain(arguments: argparse.Namespace) -> None:
    from bsym_bids.model.fetch import resolve_or_fetch
    from bsym_bids.training.pretrain import pretrain

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.model_dir is not None and arguments.init is None:
        raise UsageError("--model-dir without --init", hint="name the release with --init")
    init = resolve_or_fetch(arguments.init, arguments.model_dir) if arguments.init else None
    folder = pretrain(
        arguments.derivatives,
        arguments.out,
        _settings(arguments, init.card if init else {}),
        init,
        name=arguments.name,
        notice=arguments.notice,
        half=arguments.half,
    )
    print(f"{folder}: use it with --model {arguments.name} --model-dir {folder}")


def _settings(arguments: argparse.Namespace, card: Mapping[str, Any]) -> PretrainSettings:
    """Return the settings that the arguments stand for, and where they say nothing a card."""
    from bsym_bids.training.data import InputRules
    from bsym_bids.training.objectives import Masking
    from bsym_bids.training.pretrain import PretrainSettings

    contract = card.get("contract", {})
    structural = contract.get("structural_connectivity", {})
    stated = {
        "repetition_time": contract.get("repetition_time"),
        "scaling": contract.get("scaling"),
        "convention": structural.get("transform"),
        "volume_normalised": structural.get("volume_normalised"),
    }
    given = vars(arguments) | {
        "roi_share": tuple(arguments.roi_share),
        "convention": arguments.sc_convention,
    }
    known = stated | {name: value for name, value in given.items() if value is not None}

    def chosen(kind: type) -> dict[str, Any]:
        names = (f.name for f in fields(kind))
        return {name: known[name] for name in names if known.get(name) is not None}

    settings = PretrainSettings(
        **chosen(PretrainSettings),
        masking=Masking(**chosen(Masking)),
        rules=InputRules(**chosen(InputRules)),
    )
    settings.check()
    return settings
