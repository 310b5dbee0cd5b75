"""What preprocesses raw series: programs of MRtrix3 and FSL where they are installed, else our own.

They are taken whatever the engine is, so that installing one of them later changes results.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

from bsym_bids.dwi.commands import find_command, run
from bsym_bids.dwi.fsl import choose_fsl
from bsym_bids.errors import BsymError
from bsym_bids.inputs.records import DwiScan


def mrtrix3_version(command: str) -> str:
    """Return the version that a command of MRtrix3 on the PATH says it has, or ``unknown``.

    One that cannot be run is told of where its work is needed.
    """
    try:
        said = run([command, "-version"], folder=Path("/"))
    except BsymError:
        return "unknown"
    found = re.search(rf"{re.escape(command)}\s+(\S+)", said)
    return found.group(1) if found else "unknown"


def preprocessing_tools() -> dict[str, str]:
    """Return what does the steps of preprocessing raw series here, with its version.

    What corrects motion is another one for each scan, see `motion_tool`.
    """
    dipy = f"dipy {version('dipy')}"
    return {
        "Denoising": _command("dwidenoise") or dipy,
        "GibbsRemoval": _command("mrdegibbs") or dipy,
        "BiasCorrection": _itk(),
    }


def motion_tool(scan: DwiScan) -> str:
    """Return what corrects motion of a raw scan here, with its version."""
    fsl, _ = choose_fsl(scan.images)
    if fsl is None:
        return _itk()
    topup = " and topup" if fsl.corrects_distortions((*scan.images, *scan.reverse)) else ""
    return f"FSL {fsl.version} {fsl.eddy}{topup}"


def _itk() -> str:
    return f"SimpleITK {version('SimpleITK')}"


def _command(name: str) -> str | None:
    return f"{name} {mrtrix3_version(name)}" if find_command(name) else None
