"""The settings of one run: parsed once, passed on, written beside the results.

Three sources, the later winning: the defaults below, a TOML file (``--config``), the command line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import Any

from bsym_bids import untrusted
from bsym_bids.errors import CannotCreateOutputError, InputMissingError, UsageError

#: What is fixed by the call itself and never read from a configuration file.
CALL_FIELDS = ("bids_dir", "output_dir", "analysis_level")
_PATHS = {
    "bids_filter_file",
    "model_dir",
    "work_dir",
    "use_plugin",
    "write_slurm",
    "bids_database_dir",
    "save_head",
    "apply_head",
}
#: What only the group level takes.
GROUP_FIELDS = (
    "predict",
    "state",
    "contrast",
    "task_type",
    "features",
    "folds",
    "repeats",
    "permutations",
    "bootstrap",
    "group_by",
    "confounds",
    "harmonize",
    "site",
    "save_head",
    "apply_head",
)
#: What labels may carry, in a file as on the command line.
_PREFIXES = {
    "participant_label": "sub-",
    "session_label": "ses-",
    "task_id": "task-",
    "run_id": "run-",
}
_MOST_SEEDS = 1 << 32  # what every generator of random numbers takes
_UNTIL = ("reliability", "max_streamlines")
DEFAULT_SPACES = ("MNI152NLin2009cAsym", "MNI152NLin6Asym", "fsLR")
#: How a run is scaled by itself, and at the group level by all of them.
SCALINGS = ("robust", "zscore", "none")
COHORT = "cohort"
PARCEL_METHODS = ("mean", "pca")
MODALITIES = ("bold", "dwi")
ENGINES = ("auto", "mrtrix3", "dipy")
GRADIENT_CHECKS = ("correct", "warn", "off")
TRACTOGRAM_FORMATS = ("tck", "trx")
SC_MEASURES = ("count", "invnodevol")
SC_TRANSFORMS = ("log10p1", "log10")
TASK_TYPES = ("regression", "classification")
HARMONIZATIONS = ("combat",)
#: In place of a list of confounds: none at all.
NO_CONFOUNDS = "none"


@dataclass(frozen=True)
class RunConfig:
    """Everything the user can decide about one run.

    Attributes
    ----------
    bids_dir, output_dir : Path
        Input dataset and output derivative dataset.
    analysis_level : str
        ``participant`` or ``group``.
    participant_label, session_label, task_id, run_id : tuple of str
        What to process; empty means everything. Labels are without their ``sub-``, ``ses-`` prefix.
    bids_filter_file : Path, optional
        JSON of PyBIDS filters, as fMRIPrep takes them.
    derivatives : mapping of str to Path
        Derivative datasets by name; empty means that they are searched for.
    space : tuple of str
        Spaces of BOLD series in order of preference.
    modalities : tuple of str
        What to process of ``bold`` and ``dwi``.
    nuisance : str
        Name of a nuisance strategy or path of a YAML file.
    high_pass, low_pass : float, optional
        Cut-off frequencies in Hz; None follows the strategy, 0 switches the filter off.
    fd_threshold : float
        Framewise displacement in mm above which a frame is censored; 0 censors nothing.
    min_coverage : float
        Share of an ROI that must be measured, else the ROI is n/a.
    parcel_method : str
        ``mean`` or ``pca`` (first principal component).
    engine : str
        What tracks streamlines: ``mrtrix3``, ``dipy``, or ``auto`` for MRtrix3 where it is
        installed and DIPY else.
    preset : str
        How they are tracked: ``fast``, ``full`` or the path of a YAML file.
    reliability : float, optional
        Sampling reliability at which tracking stops, above 0 and below 1; None is the preset's.
    max_streamlines : int, optional
        Number at which tracking stops in any case; None is the preset's.
    streamlines : int, optional
        Number of streamlines, whatever their reliability: instead of the two above.
    save_tractogram : str, optional
        Format in which the streamlines are kept, ``tck`` or ``trx``; None keeps none.
    gradient_check : str
        What becomes of gradients that are flipped or permuted by all appearances: ``correct``,
        ``warn``, or ``off`` to look at nothing.
    sc_measure, sc_transform : str, optional
        What the model gets of a connectome: ``count``, or ``invnodevol`` for counts by the volume
        of the ROIs, and its logarithm as ``log10p1`` or ``log10``; None is what the model's card
        says.
    model : str, optional
        Name of the model release; None follows ``$BSYM_MODEL``, then the official release.
    model_dir : Path, optional
        Folder that holds the files of the release.
    model_tr : float
        Repetition time in seconds that the model expects.
    window_step : int
        Frames between the starts of two windows.
    scaling : str
        Scaling of each ROI before the model: ``robust``, ``zscore`` or ``none``; at the group level
        ``cohort`` embeds every run anew, scaled by the statistics of all of them.
    work_dir : Path, optional
        Scratch space; None is ``<output_dir>/work``.
    clean_workdir : bool
        Empty the work directory first.
    nprocs, omp_nthreads : int, optional
        Parallel jobs, and threads of each; None is chosen from the machine and the work.
    mem_gb : float, optional
        Memory that may be used at once.
    use_plugin : Path, optional
        YAML file with a Nipype plugin and its arguments.
    write_slurm : Path, optional
        Process nothing, but write a script for SLURM here.
    slurm_throttle : int
        Tasks that it lets run at once.
    bids_database_dir : Path, optional
        Where what there is in the folders of participants is kept between runs.
    skip_bids_validation, stop_on_first_crash, dry_run : bool
        Switches.
    reports_only : bool
        Make the pages anew from the outputs that there are, and nothing else.
    skip_reports : bool
        Make no pages.
    predict : tuple of str
        Columns of the phenotype tables to predict at the group level.
    state : tuple of str
        Labels of sessions or tasks to tell apart within persons, as ``ses-A`` or ``task-B``.
    contrast : tuple of str
        Paired differences to map, as ``ses-A-ses-B`` or ``task-A-task-B``.
    task_type : str, optional
        ``regression`` or ``classification``; None is told by the data.
    features : tuple of str
        Kinds of features to predict from, and to map; empty means all that there are.
    folds, repeats : int
        Folds of the cross-validation, and how often it is repeated.
    permutations, bootstrap : int
        Permutations of the labels, and bootstrap samples; 0 for none.
    group_by : str, optional
        Column of which whole groups stay in one fold.
    confounds : tuple of str, optional
        Confounds by name; None is the default set, ``("none",)`` is none.
    harmonize : str, optional
        ``combat``: harmonise features between the groups of ``site``.
    site : str
        Column of the sites.
    save_head, apply_head : Path, optional
        File to keep the fitted predictors in, and to take them from.
    seed : int
        Seed of everything random.
    verbose : int
        0 for progress, 1 for more, 2 for debugging.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: str
    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    task_id: tuple[str, ...] = ()
    run_id: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    derivatives: Mapping[str, Path] = field(default_factory=dict)
    space: tuple[str, ...] = DEFAULT_SPACES
    modalities: tuple[str, ...] = MODALITIES
    nuisance: str = "24p-wm-csf"
    high_pass: float | None = None
    low_pass: float | None = None
    fd_threshold: float = 0.0
    min_coverage: float = 0.5
    parcel_method: str = "mean"
    engine: str = "auto"
    preset: str = "full"
    reliability: float | None = None
    max_streamlines: int | None = None
    streamlines: int | None = None
    save_tractogram: str | None = None
    gradient_check: str = "correct"
    sc_measure: str | None = None
    sc_transform: str | None = None
    model: str | None = None
    model_dir: Path | None = None
    model_tr: float = 0.8
    window_step: int = 100
    scaling: str = "robust"
    work_dir: Path | None = None
    clean_workdir: bool = False
    nprocs: int | None = None
    omp_nthreads: int | None = None
    mem_gb: float | None = None
    use_plugin: Path | None = None
    write_slurm: Path | None = None
    slurm_throttle: int = 50
    bids_database_dir: Path | None = None
    skip_bids_validation: bool = False
    stop_on_first_crash: bool = False
    dry_run: bool = False
    reports_only: bool = False
    skip_reports: bool = False
    predict: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    contrast: tuple[str, ...] = ()
    task_type: str | None = None
    features: tuple[str, ...] = ()
    folds: int = 5
    repeats: int = 10
    permutations: int = 1000
    bootstrap: int = 1000
    group_by: str | None = None
    confounds: tuple[str, ...] | None = None
    harmonize: str | None = None
    site: str = "site"
    save_head: Path | None = None
    apply_head: Path | None = None
    seed: int = 0
    verbose: int = 0

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check_together(self)

    def with_absolute_paths(self) -> RunConfig:
        """Return the same settings with paths that hold in any working directory."""
        changes: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Path):
                changes[item.name] = value.absolute()
        changes["derivatives"] = {name: p.absolute() for name, p in self.derivatives.items()}
        for name in ("nuisance", "preset"):  # a name, or a file
            path = Path(getattr(self, name))
            if os.path.isfile(path):  # what cannot be the name of a file is none
                changes[name] = str(path.absolute())
        return replace(self, **changes)

    @property
    def scratch(self) -> Path:
        """The work directory in use."""
        return self.work_dir or self.output_dir / "work"


def make_config(arguments: Mapping[str, Any], config_file: Path | None = None) -> RunConfig:
    """Merge the defaults, a TOML file and the arguments that were given.

    Parameters
    ----------
    arguments : mapping
        Fields given on the command line, and only those.
    config_file : Path, optional
        TOML file as a run writes it.

    Returns
    -------
    RunConfig
    """
    values = dict(read_toml(config_file)) if config_file else {}
    # The number of streamlines is one choice: a later source that makes it, makes all of it.
    if arguments.keys() & {"streamlines"}:
        values = {key: value for key, value in values.items() if key not in _UNTIL}
    elif arguments.keys() & set(_UNTIL):
        values.pop("streamlines", None)
    values.update(arguments)
    return RunConfig(**values)


def read_toml(path: Path) -> dict[str, Any]:
    """Read the settings of a TOML file, checked by name and type."""
    try:
        document = untrusted.read_toml(path)
    except FileNotFoundError:
        raise InputMissingError(f"{path}: no such configuration file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as TOML: {error}") from error
    known = {f.name: f for f in fields(RunConfig) if f.name not in CALL_FIELDS}
    values = {}
    for key, value in document.items():
        name = key.replace("-", "_")
        if name in CALL_FIELDS:
            continue  # a run writes where it ran; the next one is told so by its own arguments
        if name not in known:
            raise UsageError(
                f"{path}: unknown setting {key!r}",
                hint=f"known settings: {', '.join(sorted(known))}",
            )
        values[name] = _typed(path, name, value, str(known[name].type))
    return values


def write_toml(config: RunConfig, path: Path) -> None:
    """Write the settings as TOML, so that ``--config`` can repeat the run."""
    import tomli_w

    document = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if value is not None:
            document[item.name] = _plain(value)
    path.write_text(tomli_w.dumps(document), "utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return {key: str(entry) for key, entry in value.items()}
    return value


def _typed(path: Path, name: str, value: Any, declared: str) -> Any:
    """Return a TOML value as the type that the field declares, or complain by name."""
    wrong = UsageError(f"{path}: {name} = {_shown(value)} is not of type {declared}")
    if name == "derivatives":
        if not isinstance(value, dict) or not all(map(_is_path, value.values())):
            raise wrong
        return {str(key): Path(entry) for key, entry in value.items()}
    if declared.startswith("tuple"):
        if not isinstance(value, list | str):
            raise wrong
        entries = [value] if isinstance(value, str) else value
        if not all(isinstance(entry, str | int) and entry is not True for entry in entries):
            raise wrong
        labels = tuple(str(entry).removeprefix(_PREFIXES.get(name, "")) for entry in entries)
        if not all(label and label.isprintable() for label in labels):
            raise wrong
        return labels
    if name in _PATHS:
        if not isinstance(value, str) or not _is_path(value):
            raise wrong
        return Path(value)
    kind = declared.split(" |")[0]
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value).__name__ != kind or (kind == "str" and not _is_path(value)):
        raise wrong
    return value


def _is_path(value: Any) -> bool:
    """Tell whether something is a text that can name a file, or anything else."""
    return isinstance(value, str) and value != "" and "\0" not in value


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # of an integer that Python finds too long to write
        return "a number of too many digits"


def _check_ranges(config: RunConfig) -> None:
    """Refuse numbers that can't be meant, before anything is read."""
    rules: tuple[tuple[str, bool, str], ...] = (
        ("high_pass", config.high_pass is None or 0 <= config.high_pass < inf, "0 or more (Hz)"),
        ("low_pass", config.low_pass is None or 0 <= config.low_pass < inf, "0 or more (Hz)"),
        ("fd_threshold", 0 <= config.fd_threshold < inf, "0 or more (mm)"),
        ("min_coverage", 0 <= config.min_coverage <= 1, "between 0 and 1"),
        ("model_tr", 0 < config.model_tr < inf, "above 0 (s)"),
        ("window_step", config.window_step >= 1, "at least 1 frame"),
        (
            "scaling",
            config.scaling in (*SCALINGS, COHORT),
            f"one of {', '.join((*SCALINGS, COHORT))}",
        ),
        (
            "parcel_method",
            config.parcel_method in PARCEL_METHODS,
            f"one of {', '.join(PARCEL_METHODS)}",
        ),
        (
            "modalities",
            len(config.modalities) > 0 and set(config.modalities) <= set(MODALITIES),
            f"of {', '.join(MODALITIES)}",
        ),
        ("engine", config.engine in ENGINES, f"one of {', '.join(ENGINES)}"),
        ("preset", config.preset != "", "a name or a file"),
        (
            "reliability",
            config.reliability is None or 0 < config.reliability < 1,
            "above 0 and below 1",
        ),
        (
            "max_streamlines",
            config.max_streamlines is None or config.max_streamlines >= 1,
            "at least 1",
        ),
        ("streamlines", config.streamlines is None or config.streamlines >= 1, "at least 1"),
        (
            "save_tractogram",
            config.save_tractogram in (None, *TRACTOGRAM_FORMATS),
            f"one of {', '.join(TRACTOGRAM_FORMATS)}",
        ),
        (
            "gradient_check",
            config.gradient_check in GRADIENT_CHECKS,
            f"one of {', '.join(GRADIENT_CHECKS)}",
        ),
        (
            "sc_measure",
            config.sc_measure in (None, *SC_MEASURES),
            f"one of {', '.join(SC_MEASURES)}",
        ),
        (
            "sc_transform",
            config.sc_transform in (None, *SC_TRANSFORMS),
            f"one of {', '.join(SC_TRANSFORMS)}",
        ),
        ("nprocs", config.nprocs is None or config.nprocs >= 1, "at least 1"),
        ("omp_nthreads", config.omp_nthreads is None or config.omp_nthreads >= 1, "at least 1"),
        ("slurm_throttle", config.slurm_throttle >= 1, "at least 1"),
        # Nipype waits for ever where it has less than 0.01 GB to give.
        ("mem_gb", config.mem_gb is None or 0.1 <= config.mem_gb < inf, "0.1 or more (GB)"),
        (
            "task_type",
            config.task_type in (None, *TASK_TYPES),
            f"one of {', '.join(TASK_TYPES)}",
        ),
        ("folds", config.folds >= 3, "at least 3: one is tested, one chooses the penalty"),
        ("repeats", config.repeats >= 1, "at least 1"),
        ("permutations", config.permutations >= 0, "0 or more"),
        ("bootstrap", config.bootstrap >= 0, "0 or more"),
        (
            "harmonize",
            config.harmonize in (None, *HARMONIZATIONS),
            f"one of {', '.join(HARMONIZATIONS)}",
        ),
        ("seed", 0 <= config.seed < _MOST_SEEDS, "from 0 to 4294967295"),
        ("space", bool(config.space), "at least one space"),
    )
    for name, holds, wanted in rules:
        if not holds:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} is {getattr(config, name)!r}, but must be {wanted}")


#: What a call of the group level asks for, and what goes with it.
_REQUESTS = ("predict", "state", "contrast", "save_head", "apply_head")


def _check_together(config: RunConfig) -> None:
    """Refuse settings that contradict each other."""
    _check_group_level(config)
    if config.reports_only and config.skip_reports:
        raise UsageError(
            "--reports-only and --skip-reports contradict each other", hint="give one of them"
        )
    _check_script(config)
    for name in _UNTIL:
        if config.streamlines is not None and getattr(config, name) is not None:
            raise UsageError(
                f"--streamlines and --{name.replace('_', '-')} contradict each other: the first "
                "is a fixed number, the second tells when to stop",
                hint="give one of them",
            )
    for name in ("task_id", "run_id"):
        if getattr(config, name) and "bold" not in config.modalities:
            raise UsageError(
                f"--{name.replace('_', '-')} chooses BOLD runs, but --modalities leaves them out",
                hint="scans are chosen by --participant-label, --session-label and "
                "--bids-filter-file",
            )


def _check_script(config: RunConfig) -> None:
    """Refuse to write a script instead of what is asked for besides."""
    if config.write_slurm is None:
        return
    if config.analysis_level != "participant":
        raise UsageError(
            "--write-slurm is of the participant level; the script has a job for the group level",
            hint="write it with participant, and say in GROUP_OPTIONS of the script what the group "
            "level shall do",
        )
    for name in ("dry_run", "reports_only", "use_plugin"):
        if getattr(config, name):
            raise UsageError(
                f"--write-slurm and --{name.replace('_', '-')} exclude each other",
                hint="give one of them",
            )


def _check_can_be_saved(path: Path) -> None:
    """Refuse a file that could not be written, before hours of work for it."""
    # os.path: what may not be looked at counts as not there
    if os.path.isdir(path):
        raise CannotCreateOutputError(
            f"--save-head {path}: is a folder", hint="name a file in it, as in head.npz"
        )
    if not os.path.isdir(path.parent):
        raise CannotCreateOutputError(
            f"--save-head {path}: there is no folder {path.parent}",
            hint="make the folder first, or choose another",
        )


def _check_group_level(config: RunConfig) -> None:
    """Refuse requests of the group level that contradict each other or are not of this level."""
    asked = [name for name in _REQUESTS if getattr(config, name)]
    flags = ["--" + name.replace("_", "-") for name in asked]
    if asked and config.analysis_level != "group":
        raise UsageError(
            f"{flags[0]} is of the group level",
            hint="process the participants first, then: bsym-bids BIDS_DIR OUTPUT_DIR group "
            f"{flags[0]} ...",
        )
    if config.scaling == COHORT and config.analysis_level != "group":
        raise UsageError(
            f"--scaling {COHORT} is of the group level: it scales by all participants",
            hint="process the participants first, then: bsym-bids BIDS_DIR OUTPUT_DIR group "
            f"--scaling {COHORT}; its embeddings will stand beside those of the first call",
        )
    labels = [name for name in ("predict", "state", "apply_head") if name in asked]
    if len(labels) > 1:
        first, second = ("--" + name.replace("_", "-") for name in labels[:2])
        raise UsageError(f"{first} and {second} exclude each other", hint="make two calls of it")
    if config.save_head and not (config.predict or config.state):
        raise UsageError("--save-head keeps predictors, but none are fitted: give --predict")
    if config.save_head and config.harmonize:
        raise UsageError(
            "--save-head and --harmonize exclude each other: what is learned of sites holds for "
            "these alone",
            hint="leave one of them out",
        )
    if config.save_head:
        _check_can_be_saved(config.save_head)
    if config.state and len(config.state) < 2:
        raise UsageError("--state tells at least two labels apart", hint="as in ses-A ses-B")
    if config.confounds and NO_CONFOUNDS in config.confounds and len(config.confounds) > 1:
        raise UsageError(f"--confounds {NO_CONFOUNDS} goes with no others")
