"""The command ``bsym-bids``: parser and main. Nothing heavy is imported before parsing."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from bsym_bids import __version__
from bsym_bids.config import (
    COHORT,
    ENGINES,
    GRADIENT_CHECKS,
    HARMONIZATIONS,
    MODALITIES,
    PARCEL_METHODS,
    SC_MEASURES,
    SC_TRANSFORMS,
    SCALINGS,
    TASK_TYPES,
    TRACTOGRAM_FORMATS,
    RunConfig,
    make_config,
)
from bsym_bids.errors import BsymError, OutputIOError, UsageError, explain_machine

_INTERNAL_ERROR = 70  # EX_SOFTWARE: a fault of ours, not of the input
_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """A parser that leaves with the exit code for wrong usage."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and leave."""
        self.print_usage(sys.stderr)
        self.exit(UsageError.exit_code, f"{self.prog}: error: {message}\n")


class _PrintSpecification(argparse.Action):
    """Print the Boutiques descriptor of the command and leave."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print it and leave."""
        import json

        from bsym_bids.descriptors.boutiques import describe_command

        print(json.dumps(describe_command(parser), indent=2))
        parser.exit()


def _named_path(text: str) -> tuple[str, Path]:
    """Split ``name=path``; a bare path is named after its folder."""
    name, sign, path = text.partition("=")
    if not sign:
        return Path(text).resolve().name, Path(text)
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=path")
    return name, Path(path)


def _label(prefix: str) -> Any:
    """Return a converter that takes a label with or without its BIDS prefix."""

    def convert(text: str) -> str:
        label = text.removeprefix(prefix)
        if not label:
            raise argparse.ArgumentTypeError(f"{text!r} is not a label")
        return label

    return convert


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``bsym-bids``.

    Every option defaults to "not given", so that a configuration file can fill what the command
    line leaves out; the defaults themselves are those of `bsym_bids.config.RunConfig`.
    """
    parser = Parser(
        prog="bsym-bids",
        description="From fMRIPrep derivatives and diffusion MRI to BrainSymphony embeddings, as a "
        "BIDS App.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("bids_dir", type=Path, help="the BIDS dataset, or a derivative dataset")
    parser.add_argument("output_dir", type=Path, help="where the output dataset goes")
    parser.add_argument("analysis_level", choices=["participant", "group"], help="what to do")
    parser.add_argument("--version", action="version", version=f"bsym-bids {__version__}")
    parser.add_argument(
        "--bids-exec-spec",
        action=_PrintSpecification,
        nargs=0,
        dest="version",  # nothing is stored, as with --version
        help="print a description of this command for programs (Boutiques) and leave",
    )
    parser.add_argument("-v", "--verbose", action="count", help="log more; twice to debug")
    _add_selection(parser)
    _add_processing(parser)
    _add_diffusion(parser)
    _add_model(parser)
    _add_group_level(parser)
    _add_execution(parser)
    return parser


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to process")
    add = group.add_argument
    add(
        "--participant-label",
        nargs="+",
        type=_label("sub-"),
        metavar="LABEL",
        help="participants, with or without 'sub-' (default: all)",
    )
    add(
        "--session-label",
        nargs="+",
        type=_label("ses-"),
        metavar="LABEL",
        help="sessions, with or without 'ses-'",
    )
    add("--task-id", nargs="+", type=_label("task-"), metavar="TASK", help="tasks of BOLD series")
    add("--run-id", nargs="+", type=_label("run-"), metavar="RUN", help="runs of BOLD series")
    add(
        "--modalities",
        nargs="+",
        choices=MODALITIES,
        help="what to process (default: both, where there are both)",
    )
    add(
        "--bids-filter-file",
        type=Path,
        metavar="FILE",
        help="JSON file of PyBIDS filters, as fMRIPrep takes it",
    )
    add(
        "--derivatives",
        nargs="+",
        type=_named_path,
        metavar="NAME=PATH",
        help="derivative datasets to read (default: those of fMRIPrep and QSIPrep under "
        "bids_dir/derivatives, or bids_dir itself)",
    )
    add(
        "--space",
        nargs="+",
        metavar="SPACE",
        help="spaces of BOLD series in order of preference "
        "(default: MNI152NLin2009cAsym MNI152NLin6Asym fsLR)",
    )
    add(
        "--bids-database-dir",
        type=Path,
        metavar="DIR",
        help="keep what there is in the folders of participants here, and look again only into "
        "those that changed",
    )
    add(
        "--skip-bids-validation",
        action="store_true",
        help="accept a bids_dir without a valid dataset_description.json",
    )


def _add_processing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("from BOLD to time series")
    add = group.add_argument
    add(
        "--parcel-method",
        choices=PARCEL_METHODS,
        help="mean of an ROI's voxels, or their first principal component (default: mean)",
    )
    add(
        "--min-coverage",
        type=float,
        metavar="SHARE",
        help="ROIs measured by less than this share become n/a (default: 0.5)",
    )
    add(
        "--nuisance",
        metavar="STRATEGY",
        help="24p-wm-csf (default), 36p, acompcor, aroma, none, or a YAML file",
    )
    add("--high-pass", type=float, metavar="HZ", help="default: the strategy's; 0 for none")
    add("--low-pass", type=float, metavar="HZ", help="default: the strategy's; 0 for none")
    add(
        "--fd-threshold",
        type=float,
        metavar="MM",
        help="censor frames with more framewise displacement (default: 0, none)",
    )


def _add_diffusion(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("from diffusion to connectomes")
    add = group.add_argument
    add(
        "--engine",
        choices=ENGINES,
        help="what tracks streamlines (default: auto, MRtrix3 if it is installed, else DIPY)",
    )
    add("--preset", metavar="PRESET", help="full (default), fast, or a YAML file")
    add(
        "--reliability",
        type=float,
        metavar="R",
        help="track until the connectome's sampling reliability is R (default: the preset's)",
    )
    add(
        "--max-streamlines",
        type=int,
        metavar="N",
        help="but no more than N streamlines (default: the preset's)",
    )
    add(
        "--streamlines",
        type=int,
        metavar="N",
        help="track N streamlines, whatever the reliability",
    )
    add(
        "--save-tractogram",
        choices=TRACTOGRAM_FORMATS,
        help="keep the streamlines (default: only their connectome)",
    )
    add(
        "--gradient-check",
        choices=GRADIENT_CHECKS,
        help="what to do about gradients that look flipped or permuted (default: correct)",
    )
    add(
        "--sc-measure",
        choices=SC_MEASURES,
        help="streamline counts for the model, or counts by the volume of the ROIs "
        "(default: as its card says)",
    )
    add(
        "--sc-transform",
        choices=SC_TRANSFORMS,
        help="logarithm of them for the model (default: as its card says)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    add = group.add_argument
    add(
        "--model",
        metavar="NAME",
        help="brainsymphony-v1 (default), or untrained for a trial (default: $BSYM_MODEL)",
    )
    add("--model-dir", type=Path, metavar="DIR", help="folder with the files of the model release")
    add(
        "--model-tr",
        type=float,
        metavar="SECONDS",
        help="repetition time the model expects (default: 0.8)",
    )
    add(
        "--window-step",
        type=int,
        metavar="FRAMES",
        help="frames between windows of 200 (default: 100)",
    )
    add(
        "--scaling",
        choices=(*SCALINGS, COHORT),
        help="scaling of each ROI (default: robust); cohort is of the group level, where every run "
        "is embedded anew by the median and IQR over all participants",
    )
    add("--seed", type=int, help="seed of everything random (default: 0)")


def _add_group_level(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("group level")
    add = group.add_argument
    add(
        "--predict",
        nargs="+",
        metavar="COLUMN",
        help="columns of participants.tsv, sessions.tsv or phenotype/*.tsv to predict",
    )
    add(
        "--state",
        nargs="+",
        metavar="LABEL",
        help="tell sessions (ses-A ses-B) or tasks (task-A task-B) of the same people apart",
    )
    add(
        "--contrast",
        nargs="+",
        metavar="A-B",
        help="map paired differences: ses-A-ses-B or task-A-task-B",
    )
    add(
        "--task-type",
        choices=TASK_TYPES,
        help="what the columns to predict are (default: told by the data)",
    )
    add("--features", nargs="+", metavar="KIND", help="take these features only (default: all)")
    add("--folds", type=int, metavar="N", help="folds of the cross-validation (default: 5)")
    add("--repeats", type=int, metavar="N", help="how often it is repeated (default: 10)")
    add(
        "--permutations",
        type=int,
        metavar="N",
        help="permutations, for p-values (default: 1000)",
    )
    add(
        "--bootstrap",
        type=int,
        metavar="N",
        help="bootstrap samples, for confidence intervals (default: 1000)",
    )
    add(
        "--group-by",
        metavar="COLUMN",
        help="keep people of one group (family, site) in one fold; 'site' adds leave-site-out",
    )
    add(
        "--confounds",
        nargs="+",
        metavar="NAME",
        help="what to compare with and to regress out of features: fd_mean, n_frames, roi_volume, "
        "or columns of the tables; none for none (default: these, sex for age and age for sex)",
    )
    add("--harmonize", choices=HARMONIZATIONS, help="harmonise features between sites")
    add("--site", metavar="COLUMN", help="column of the sites (default: site)")
    add("--save-head", type=Path, metavar="FILE", help="keep the fitted predictors in a file")
    add(
        "--apply-head",
        type=Path,
        metavar="FILE",
        help="predict with the predictors of such a file, without labels",
    )


def _add_execution(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("running")
    add = group.add_argument
    add("-w", "--work-dir", type=Path, metavar="DIR", help="default: output_dir/work")
    add(
        "--clean-workdir",
        action="store_true",
        help="empty the work directory first (of participants that are named)",
    )
    add("--nprocs", type=int, metavar="N", help="jobs at once (default: all cores)")
    add("--omp-nthreads", type=int, metavar="N", help="threads of one job")
    add("--mem-gb", type=float, metavar="GB", help="memory that may be used at once")
    add(
        "--use-plugin",
        type=Path,
        metavar="FILE",
        help="YAML file with a Nipype plugin and its plugin_args",
    )
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file of settings, as every run writes it under logs/",
    )
    add(
        "--write-slurm",
        type=Path,
        metavar="FILE",
        help="process nothing, but write a script that submits one SLURM task for each "
        "participant, and the group level after them",
    )
    add("--slurm-throttle", type=int, metavar="N", help="tasks at once at most (default: 50)")
    add("--stop-on-first-crash", action="store_true", help="don't go on with the others")
    add(
        "--reports-only",
        action="store_true",
        help="make the reports anew from the outputs that there are, and nothing else",
    )
    add("--skip-reports", action="store_true", help="make no reports; --reports-only does it later")
    add(
        "--dry-run",
        action="store_true",
        help="print what would be done and written, and what is skipped and why",
    )


def parse_config(argv: Sequence[str] | None = None) -> RunConfig:
    """Turn command-line arguments into the settings of the run."""
    given = vars(build_parser().parse_args(argv))
    config_file = given.pop("config", None)
    for name, value in given.items():
        if name == "derivatives":
            given[name] = _unique(value)
        elif isinstance(value, list):
            given[name] = tuple(value)
    return make_config(given, config_file)


def _unique(pairs: list[tuple[str, Path]]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for name, path in pairs:
        if name in named:
            raise UsageError(
                f"--derivatives names {name!r} twice: {named[name]} and {path}",
                hint="give each dataset its own name: --derivatives a=PATH b=PATH",
            )
        named[name] = path
    return named


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``bsym-bids`` and return its exit code."""
    if threading.current_thread() is threading.main_thread():
        # Schedulers and `docker stop` end a program so: it takes its workers along, as on Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        config = parse_config(argv)
        if config.analysis_level == "group":
            from bsym_bids.workflows.group import run_group_level

            return run_group_level(config)
        from bsym_bids.workflows.participant import run_participant_level

        return run_participant_level(config)
    except BsymError as error:
        return report(error)
    except KeyboardInterrupt:
        print("bsym-bids: interrupted; the same command goes on from here", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # `bsym-bids --dry-run | head`: nobody reads any more, which is no fault
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("BSYM_DEBUG"):
            raise
        if explained := explain_machine(error, "bsym-bids"):
            return report(explained)
        if isinstance(error, OSError):  # of the system or a device, wherever it was met
            where = error.filename or "input/output error"
            return report(OutputIOError(f"{where}: {error.strerror or error}"))
        print(
            f"bsym-bids: internal error: {type(error).__name__}: {error}\n"
            "  this is a fault of bsym-bids: set BSYM_DEBUG=1 to see where, and please report it",
            file=sys.stderr,
        )
        return _INTERNAL_ERROR


def report(error: BsymError, program: str = "bsym-bids") -> int:
    """Print an explained error and return its exit code."""
    print(f"{program}: error: {error}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {error.hint}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
