"""The files that Boutiques, Nipoppy, BABS and CBRAIN take to run ``bsym-bids``."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from bsym_bids import __version__, atlas
from bsym_bids.descriptors.boutiques import Json, read_facts
from bsym_bids.outputs.names import RUN_GROUPS, STATISTICS, TRACTOGRAM, Product, products_of

PARTICIPANT, SESSION = "[[NIPOPPY_BIDS_PARTICIPANT_ID]]", "[[NIPOPPY_BIDS_SESSION_ID]]"
_SCHEMA = "1.0"  # of the files of Nipoppy 0.4
#: Products that depend on the engine or on an option: a scan is done without them.
_NOT_ALWAYS = (TRACTOGRAM, "sift2")


def runner_files(descriptor: Json) -> dict[str, str]:
    """Return every file for programs that run the command, by its path.

    Parameters
    ----------
    descriptor : dict
        The Boutiques descriptor of the command.

    Returns
    -------
    dict of str to str
        Paths as they are under ``docs/runners``, and texts.
    """
    made = {
        "boutiques/bsym-bids.json": as_json(descriptor),
        **{f"boutiques/{name}.json": as_json(call) for name, call in _EXAMPLES.items()},
        "cbrain/bsym-bids.json": as_json(cbrain_descriptor(descriptor)),
    }
    made |= {f"nipoppy/{name}": text for name, text in nipoppy_bundle(descriptor).items()}
    made |= {f"babs/{name}": text for name, text in babs_configurations().items()}
    return made


#: Calls that show what an invocation looks like.
_EXAMPLES: Mapping[str, Json] = {
    "participant": {
        "bids_dir": "/data",
        "output_dir": "/out",
        "analysis_level": "participant",
        "participant_label": ["sub-01", "sub-02"],
        "derivatives": ["fmriprep=/data/derivatives/fmriprep"],
    },
    "group": {
        "bids_dir": "/data",
        "output_dir": "/out",
        "analysis_level": "group",
        "predict": ["age"],
    },
}


def as_json(document: Any) -> str:
    """Return a document as the text of a JSON file."""
    return json.dumps(document, indent=2) + "\n"


@cache
def _read(name: str) -> Mapping[str, Any]:
    import yaml

    return yaml.safe_load(_text(name))


def _text(name: str) -> str:
    return files("bsym_bids").joinpath(f"data/descriptors/{name}").read_text("utf-8")


def nipoppy_bundle(descriptor: Json, sessions: bool = True) -> dict[str, str]:
    """Return the files of the processing pipeline for Nipoppy, by name.

    Parameters
    ----------
    descriptor : dict
        The Boutiques descriptor of the command.
    sessions : bool
        Whether the study has folders of sessions. Without, a job is a participant.

    Returns
    -------
    dict of str to str
        The texts.
    """
    facts = _read("nipoppy.yaml")
    made = {
        "config.json": as_json(_nipoppy_config(facts, sessions)),
        "descriptor.json": as_json(descriptor),
        "hpc.json": as_json(_nipoppy_resources()),
        "invocation-group.json": as_json({**facts["group"], **_limits()}),
    }
    for name, step in facts["steps"].items():
        call = {**facts["participant"], "modalities": step["modalities"], **_limits()}
        if not sessions:
            del call["session_label"]
        tracked = [
            path for group in step["tracked"] for path in tracked_paths(group, sessions=sessions)
        ]
        made[f"invocation-{name}.json"] = as_json(call)
        made[f"tracker-{name}.json"] = as_json({"PATHS": tracked, "SCHEMA_VERSION": _SCHEMA})
    return made


def _nipoppy_config(facts: Mapping[str, Any], sessions: bool) -> Json:
    level = "participant_session" if sessions else "participant"
    steps = [
        {**_nipoppy_step(name, level), "TRACKER_CONFIG_FILE": f"tracker-{name}.json"}
        for name in facts["steps"]
    ]
    return {
        "NAME": facts["name"],
        "VERSION": __version__,
        "DESCRIPTION": facts["description"],
        "PIPELINE_TYPE": "processing",
        "CONTAINER_INFO": {"FILE": facts["container"]},
        "CONTAINER_CONFIG": {
            "BIND_PATHS": ["[[BSYM_MODEL_HOME]]"],
            "ENV_VARS": {"BSYM_MODEL_HOME": "[[BSYM_MODEL_HOME]]"},
        },
        "VARIABLES": dict(facts["variables"]),
        "STEPS": [*steps, _nipoppy_step("group", "group")],
        "SCHEMA_VERSION": _SCHEMA,
    }


def _nipoppy_step(name: str, level: str) -> Json:
    return {
        "NAME": name,
        "ANALYSIS_LEVEL": level,
        "DESCRIPTOR_FILE": "descriptor.json",
        "INVOCATION_FILE": f"invocation-{name}.json",
        "HPC_CONFIG_FILE": "hpc.json",
        "GENERATE_PYBIDS_DATABASE": False,
    }


def tracked_paths(group: str, sessions: bool = True) -> list[str]:
    """Return patterns of the files that a group of products is sure to have.

    Parameters
    ----------
    group : str
        ``timeseries``, ``embedding``, ``connectome`` or ``structural``.
    sessions : bool
        Whether there are folders of sessions.

    Returns
    -------
    list of str
        Patterns relative to the output dataset, with Nipoppy's words for labels.
    """
    # res-<R> and den-<D> may follow in names of runs, nothing in those of scans.
    datatype, more = ("func", "*") if group in RUN_GROUPS else ("dwi", "")
    labels = [PARTICIPANT, SESSION] if sessions else [PARTICIPANT]
    folder, stem = "/".join([*labels, datatype]), "_".join(labels)
    return [
        f"{folder}/{stem}_*scale-{atlas.SCALE}{more}{_tail(product)}"
        for product in products_of(group)
        if not product.optional and product.key not in _NOT_ALWAYS
    ]


def _tail(product: Product) -> str:
    """Return how the name of a product ends under the default settings."""
    stat = product.stat.format(statistic=STATISTICS["mean"])
    entities = (f"_stat-{stat}" if stat else "") + (f"_desc-{product.desc}" if product.desc else "")
    return f"{entities}_{product.suffix}{product.extension}"


def _limits() -> Json:
    """Return the options that keep a job within its resources."""
    facts = read_facts()
    return {"nprocs": facts["resources"]["cpu-cores"], "mem_gb": facts["mem_gb"]}


def _time() -> str:
    hours, seconds = divmod(read_facts()["resources"]["walltime-estimate"], 3600)
    return f"{hours}:{seconds // 60:02d}:00"


def _nipoppy_resources() -> Json:
    resources = read_facts()["resources"]
    return {
        "ACCOUNT": "[[HPC_ACCOUNT_NAME]]",
        "TIME": _time(),
        "CORES": str(resources["cpu-cores"]),
        "MEMORY": f"{resources['ram']}G",
        "ARRAY_CONCURRENCY_LIMIT": "",
    }


def babs_configurations() -> dict[str, str]:
    """Return the examples for BABS, by name."""
    import jinja2

    facts, resources = _read("babs.yaml"), read_facts()["resources"]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(_text("babs.yaml.j2"))
    return {
        f"{name}.yaml": template.render(
            **{**facts, **example},
            version=__version__,
            dashed=__version__.replace(".", "-"),
            cpus=resources["cpu-cores"],
            ram=resources["ram"],
            disk=resources["disk-space"],
            mem_gb=read_facts()["mem_gb"],
            time=_time(),
        )
        for name, example in facts["examples"].items()
    }


def cbrain_descriptor(descriptor: Json) -> Json:
    """Return the descriptor with what CBRAIN needs.

    Parameters
    ----------
    descriptor : dict
        The Boutiques descriptor of the command.

    Returns
    -------
    dict
        A copy.
    """
    facts = _read("cbrain.yaml")
    made = copy.deepcopy(descriptor)
    for described in made["inputs"]:
        if described["id"] in facts["defaults"]:
            described["default-value"] = facts["defaults"][described["id"]]
    made["output-files"] = _only(made["output-files"], facts["outputs"])
    made["custom"] |= facts["custom"]
    return made


def _only(entries: Iterable[Json], names: Iterable[str]) -> list[Json]:
    return [entry for entry in entries if entry["id"] in names]
