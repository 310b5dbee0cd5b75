"""The text on BOLD runs: atlas, time series, cleaning, connectivity."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from bsym_bids.errors import BsymError
from bsym_bids.methods.aspects import RUN, UNITS
from bsym_bids.methods.facts import Facts
from bsym_bids.methods.sentences import (
    Paragraph,
    cite,
    clean,
    counted,
    listed,
    paragraph,
    said,
    sentence,
    values_of,
    varied,
)

Settings = Mapping[str, Any]
#: What spaces are cited by.
_SPACES: Mapping[str, tuple[str, ...]] = {
    "MNI152NLin2009cAsym": ("fonov2009", "fonov2011"),
    "MNI152NLin6Asym": ("evans2012",),
}
_REMOVED = "the confounds that were regressed out were"
#: The strategies that come with the program.
_STRATEGIES: Mapping[str, str] = {
    "24p-wm-csf": (
        f"{_REMOVED} 24 head motion terms (six parameters, their backward differences, and the "
        f"squares of both){cite('friston1996')} and the mean signals of white matter and "
        f"cerebrospinal fluid{cite('parkes2018')}"
    ),
    "36p": (
        f"{_REMOVED} 36 parameters{cite('satterthwaite2013', 'ciric2017')}: six of head motion, "
        "the mean signals of white matter and cerebrospinal fluid and the global signal, their "
        "backward differences, and the squares of all eighteen"
    ),
    "acompcor": (
        f"{_REMOVED} six head motion parameters, their backward differences, and the first five "
        "anatomical CompCor components each of cerebrospinal fluid and of white matter"
        f"{cite('behzadi2007', 'muschelli2014')}"
    ),
    "aroma": (
        f"{_REMOVED} the time courses of all independent components that ICA-AROMA had classed as "
        f"head motion{cite('pruim2015')} (the aggressive variant) and the mean signals of white "
        "matter and cerebrospinal fluid"
    ),
    "none": "no confounds were regressed out",
}


def paragraphs(facts: Facts) -> list[Paragraph]:
    """Return what is to be said of BOLD runs before the model, and of the atlas."""
    found = paragraph("Atlas", *_atlas(facts))
    if not facts.has("regressors"):
        return found
    found += paragraph("ROI time series", *_time_series(facts))
    found += paragraph("Nuisance regression", *_cleaning(facts))
    if facts.has("connectivity"):
        found += paragraph("Functional connectivity", _connectivity(facts))
    return found


def _atlas(facts: Facts) -> list[str]:
    if not (facts.has("regressors") or facts.has("dwi_simulated")):
        return []
    sentences = [
        "Regions of interest (ROIs) were the 400 cortical parcels of Schaefer et al. in the order "
        f"of seven networks{cite('schaefer2018', 'yeo2011')} and the 50 subcortical regions of "
        f"Tian et al. at scale III{cite('tian2020')}, 450 in all."
    ]
    if not facts.has("space"):
        return sentences
    sentences.append(varied(facts, "space", _space))
    if any(block.settings.get("space") != "fsLR" for block in facts.of("space")):
        sentences.append(
            "Of volumes, the atlas native to their space was used; where grids differed, the atlas "
            "and not the data was resampled, once, by nearest neighbour."
        )
    if facts.any_has("space", "space", "fsLR"):
        sentences.append("Of grayordinates, the atlas on the same grayordinates was used.")
    return sentences


def _space(settings: Settings) -> str:
    space = clean(settings.get("space", ""))
    if space == "fsLR":
        density = clean(settings.get("density", ""))
        return f"the BOLD series were on the grayordinates of {space}{cite('glasser2013')}" + (
            f" ({density})" if density else ""
        )
    resolution = clean(settings.get("resolution", ""))
    form = f" (res-{resolution})" if resolution else ""
    return f"the BOLD series were in the space {space}{cite(*_SPACES.get(space, ()))}{form}"


def _time_series(facts: Facts) -> list[str]:
    return [
        varied(facts, "roi_values", _roi_values),
        varied(facts, "coverage", _coverage),
        _repetition_times(facts),
    ]


def _roi_values(settings: Settings) -> str:
    what = "grayordinates" if settings.get("Grayordinates") else "voxels"
    masked = settings.get("Masked")
    where = ""
    if masked and what == "voxels":
        where = " inside of the brain mask that came with the series"
    elif masked is False and what == "voxels":
        where = ", without a brain mask"
    if settings.get("ParcelMethod") == "pca":
        return (
            f"the value of an ROI in a volume was the score of the first principal component of "
            f"its {what}{where}, taken before cleaning"
        )
    return f"the value of an ROI in a volume was the mean over its {what}{where}"


def _coverage(settings: Settings) -> str:
    least = settings.get("MinCoverage")
    if not least:
        return ""
    return f"ROIs of which less than {said(100 * least)} % was measured were treated as missing"


def _repetition_times(facts: Facts) -> str:
    blocks = facts.of("repetition_time")
    seconds = values_of(blocks, "Seconds")
    if not seconds:
        return ""
    if len(seconds) == 1:
        return f"The repetition time was {said(seconds[0])} s."
    if len(seconds) > 6:
        return f"Repetition times were from {said(seconds[0])} s to {said(seconds[-1])} s."
    if not facts.is_counted:
        return f"Repetition times were {listed(f'{said(value)} s' for value in seconds)}."
    each = {block.settings.get("Seconds"): len(block.holders) for block in blocks}
    return (
        "Repetition times were "
        + listed(f"{said(value)} s ({counted(each[value], UNITS['space'])})" for value in seconds)
        + "."
    )


def _cleaning(facts: Facts) -> list[str]:
    return [
        varied(facts, "regressors", _regressors),
        varied(facts, "filter", _filter),
        varied(facts, "censoring", _censoring),
        _non_steady(facts),
        _censored(facts),
    ]


@cache
def _packaged(name: str) -> tuple[tuple[str, ...], tuple[str, ...], int | None]:
    """Return what a strategy of the package regresses out."""
    from bsym_bids.bold.nuisance import load_strategy

    strategy = load_strategy(name)
    compcor = strategy.acompcor
    masks = compcor.masks if compcor else ()
    return strategy.columns, masks, compcor.components if compcor else None


def _is_packaged(settings: Settings) -> bool:
    """Tell whether regressors are those of the package's strategy of that name."""
    name = settings.get("name", "")
    if name not in _STRATEGIES:
        return False
    own = tuple(settings.get("columns", ())), tuple(settings.get("masks", ()))
    try:
        return (*own, settings.get("components")) == _packaged(name)
    except BsymError:
        return False


def _regressors(settings: Settings) -> str:
    name = clean(settings.get("name", ""))
    if _is_packaged(settings):
        return _STRATEGIES[name]
    columns = [clean(column) for column in settings.get("columns", ())]
    masks = [clean(mask) for mask in settings.get("masks", ())]
    parts = [f"the confounds {listed(columns)}"] if columns else []
    if masks:
        components = settings.get("components")
        which = f"the first {said(components)}" if components else "all"
        parts.append(f"{which} anatomical CompCor components of {listed(masks)}")
    if not parts:
        return _STRATEGIES["none"]
    cited = "; ".join(clean(entry) for entry in settings.get("citation", ()))
    strategy = f'the nuisance strategy "{name}"' if name else "a nuisance strategy of the user"
    source = f" (after {cited})" if cited else ""
    return f"{strategy}{source} regressed out {' and '.join(parts)}"


def _filter(settings: Settings) -> str:
    high, low = settings.get("HighPass") or 0, settings.get("LowPass") or 0
    trend = "mean and linear trend were removed" if settings.get("detrend") else ""
    if not high and not low:
        kept = "mean and linear trend were kept"
        return f"no temporal filter was applied, and {trend or kept}"
    if settings.get("filter") == "cosine":
        where = " in the same regression" if settings.get("regression") else ""
        text = (
            f"frequencies below {said(high)} Hz were regressed out by discrete cosines{where}"
            f"{cite('lindquist2019')}"
        )
        return text + (f", and {trend}" if trend else "")
    order = settings.get("order")
    band = _band(high, low)
    form = f"a zero-phase Butterworth filter{f' of order {said(order)}' if order else ''}"
    text = f"the series were filtered by {form} ({band})"
    if settings.get("regression"):
        text = (
            "before the regression, series and confounds were filtered alike"
            f"{cite('lindquist2019')} by {form} ({band})"
        )
    return text + (f", after {trend.replace(' were', ' had been')}" if trend else "")


def _band(high: float, low: float) -> str:
    if high and low:
        return f"band-pass, {said(high)} to {said(low)} Hz"
    return f"high-pass at {said(high)} Hz" if high else f"low-pass at {said(low)} Hz"


def _censoring(settings: Settings) -> str:
    threshold = settings.get("FDThreshold")
    if not threshold:
        return "no volume was censored for head motion"
    return (
        f"volumes with a framewise displacement{cite('power2012')} above {said(threshold)} mm were "
        f"censored{cite('power2014')}"
    )


def _non_steady(facts: Facts) -> str:
    return varied(
        facts,
        "censored",
        lambda settings: (
            "initial volumes that the confounds mark as not in steady state were censored"
            if settings.get("NonSteadyState")
            else ""
        ),
    )


def _censored(facts: Facts) -> str:
    """Say what censoring means, where it was done at all."""
    has_threshold = any(block.settings.get("FDThreshold") for block in facts.of("censoring"))
    is_any = facts.any_has("censored", "Any", True)
    if not has_threshold and not is_any:
        return ""
    rule = (
        "Censored volumes were interpolated before filtering, and took no part in the regression "
        "or in what was computed from the cleaned series."
    )
    if not facts.is_counted:
        return rule
    some = {h for b in facts.of("censored") if b.settings.get("Any") for h in b.holders}
    total = len(facts.holders("censored"))
    return f"{rule} Volumes were censored in {len(some):,} of {counted(total, RUN)}."


def _connectivity(facts: Facts) -> str:
    censored = facts.any_has("censored", "Any", True)
    volumes = "the volumes that were not censored" if censored else "all volumes"
    return sentence(
        "functional connectivity was the Pearson correlation of the cleaned series of two ROIs "
        f"over {volumes}, at the repetition time of the source"
    )
