r"""ComBat: takes differences between sites out of features, learned on training units alone.

The model of feature g of unit j of site i (Johnson, Li & Rabinovic 2007, Biostatistics 8:118; for
brain measures Fortin et al. 2017, NeuroImage 161:149, and 2018, NeuroImage 167:104) is

    y_ijg = alpha_g + x_ij' beta_g + gamma_ig + delta_ig e_ijg,   e_ijg ~ N(0, sigma_g^2)

The shifts gamma of a site's features are taken to be normal and the factors delta^2 to be inverse
gamma; the parameters of both are estimated by moments over the features, and each feature's
gamma and delta are then their posterior means (parametric empirical Bayes).

What is preserved (x) must be known of the units to predict without looking at what is predicted of
them. The label itself is therefore never to be among the covariates: harmonised with it, the
features of test units carry their own labels. Age and sex may be preserved where something else is
predicted; without covariates nothing leaks, at the price that a difference between sites that
comes from a difference of their people is taken out, too.

Missing values need no filling. All that the iterations need of a site is the number, mean and
spread of each feature; the features themselves are read once, in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bsym_bids.errors import BadDataError

#: What stays in a processor's cache: larger blocks take twice as long.
_BLOCK_BYTES = 2 * 1024**2
#: A feature whose spread within sites is below this share of its size is constant.
_TINY = 1e-7
#: Relative change of shifts and factors at which the iterations have converged.
_TOLERANCE = 1e-8
_MOST_STEPS = 1000


@dataclass(frozen=True, eq=False)
class Combat:
    """What ComBat has learned; all statistics are float64.

    Attributes
    ----------
    sites : ndarray, shape (S,)
        Codes of the sites with training units; those of others are left as they are.
    centre : ndarray, shape (c,)
        Mean of the covariates over training units.
    mean : ndarray, shape (F,)
        alpha of the module's model, at the mean of the covariates.
    slopes : ndarray, shape (c, F)
        beta.
    spread : ndarray, shape (F,)
        sigma; 0 for features that are constant within all sites: they are left as they are.
    shifts : ndarray, shape (S, F)
        gamma, in units of `spread`.
    factors : ndarray, shape (S, F)
        delta. 1 for a site whose features have one training value at most: one value has no
        spread, so that only its mean is moved.
    """

    sites: NDArray[Any]
    centre: NDArray[np.float64]
    mean: NDArray[np.float64]
    slopes: NDArray[np.float64]
    spread: NDArray[np.float64]
    shifts: NDArray[np.float64]
    factors: NDArray[np.float64]

    def apply(
        self,
        values: NDArray[np.floating],
        sites: NDArray[Any],
        covariates: NDArray[np.floating] | None = None,
    ) -> NDArray[np.floating]:
        """Take the differences between sites out of features.

        Parameters
        ----------
        values : ndarray, shape (M, F)
            Features; missing ones are NaN and stay so.
        sites : ndarray, shape (M,)
            Codes; rows of a site that was not seen in training are left as they are.
        covariates : ndarray, shape (M, c), optional
            What is preserved, as in the fit.

        Returns
        -------
        ndarray, shape (M, F)
            In the precision of ``values``.

        Raises
        ------
        BadDataError
            Shapes do not fit, or a covariate is missing.
        """
        sites = np.asarray(sites)
        design = _checked(values, sites, covariates)
        for what, learned, there in (
            ("features", len(self.mean), values.shape[1]),
            ("covariates", len(self.centre), design.shape[1]),
        ):
            if learned != there:
                raise BadDataError(f"ComBat has learned {learned} {what}; there are {there}")
        design = design - self.centre
        codes = _codes_of(sites, self.sites)
        harmonised = np.empty_like(values)
        for block in _blocks(values):
            # One row more, for units of other sites.
            gain = np.vstack([1 / self.factors[:, block], np.ones(self.mean[block].shape)])
            moved = np.vstack([self.shifts[:, block], np.zeros(self.mean[block].shape)])
            moved *= gain * self.spread[block]
            own = values[:, block].astype(np.float64)
            change = own - (self.mean[block] + design @ self.slopes[:, block])
            # A change of the value, not a value put together anew: what is left as it is keeps
            # every digit.
            change *= (gain - 1)[codes]
            change -= moved[codes]
            harmonised[:, block] = own + change
        return harmonised


def fit_combat(
    values: NDArray[np.floating],
    sites: NDArray[Any],
    covariates: NDArray[np.floating] | None,
    training: NDArray[np.bool_],
) -> Combat:
    """Learn from training units how sites shift and stretch features.

    Parameters
    ----------
    values : ndarray, shape (N, F)
        Features, NaN where one is missing. Rows that do not train are not looked at.
    sites : ndarray, shape (N,)
        Code of each unit's site: numbers or names.
    covariates : ndarray, shape (N, c), optional
        What is preserved; never the label that is to be predicted (see the module). What does not
        vary within sites cannot be told from them and is not preserved.
    training : ndarray of bool, shape (N,)
        Who trains.

    Returns
    -------
    Combat
        If training units are all of one site, it leaves everything as it is.

    Raises
    ------
    BadDataError
        Shapes do not fit, a covariate is missing, or nobody trains.

    Notes
    -----
    Estimates are those of Johnson et al. (2007), section 3.2, with each feature's own number of
    values: sigma with 1/n, the spread within a site with 1/(n - 1). A feature without any value at
    a site gets that site's prior means.
    """
    sites = np.asarray(sites)
    design = _checked(values, sites, covariates)[training]
    if not len(design):
        raise BadDataError("ComBat has nobody to learn from")
    names, codes = np.unique(sites[training], return_inverse=True)
    centre = design.mean(axis=0)
    scale = design.std(axis=0)
    scale[scale <= _TINY * np.abs(centre)] = np.inf  # constant: its slope is 0
    design = (design - centre) / scale
    order = np.argsort(codes, kind="stable")  # so that sites are slices
    rows, codes, design = np.flatnonzero(training)[order], codes[order], design[order]
    blocks = [_moments(values[rows, block], codes, design) for block in _blocks(values)]
    of_all = _Moments(
        **{
            part.name: np.concatenate([getattr(block, part.name) for block in blocks], axis=-1)
            for part in fields(_Moments)
        }
    )
    shifts, factors = np.zeros(of_all.count.shape), np.ones(of_all.count.shape)
    varies = of_all.spread > 0
    if len(names) > 1 and varies.any():
        for site in range(len(names)):
            shifts[site, varies], factors[site, varies] = _posterior(
                of_all.count[site, varies],
                of_all.site_mean[site, varies],
                of_all.squares[site, varies],
            )
    return Combat(
        sites=names,
        centre=centre,
        mean=of_all.mean,
        slopes=of_all.slopes / scale[:, None],
        spread=of_all.spread,
        shifts=shifts,
        factors=factors,
    )


def _checked(
    values: NDArray[np.floating], sites: NDArray[Any], covariates: NDArray[np.floating] | None
) -> NDArray[np.float64]:
    """Return the covariates as (N, c), or raise BadDataError."""
    n = len(values)
    design = np.empty((n, 0)) if covariates is None else np.asarray(covariates, dtype=np.float64)
    if len(sites) != n or design.ndim != 2 or len(design) != n:
        raise BadDataError(
            f"ComBat needs a site and a row of covariates for each unit: there are {n} units, "
            f"{len(sites)} sites and covariates of shape {design.shape}"
        )
    if not np.isfinite(design).all():
        raise BadDataError(
            f"covariates of ComBat are missing for {(~np.isfinite(design)).any(1).sum()} of "
            f"{n} units",
            hint="impute them, or preserve others",
        )
    return design


def _codes_of(sites: NDArray[Any], names: NDArray[Any]) -> NDArray[np.int64]:
    """Return the place of each unit's site among sorted names; -1 where it is not there."""
    places = np.minimum(np.searchsorted(names, sites), len(names) - 1)
    return np.where(names[places] == sites, places, -1)


def _blocks(values: NDArray[np.floating]) -> Iterator[slice]:
    """Yield slices of features that are small enough to be worked on at once."""
    step = max(1, _BLOCK_BYTES // (8 * max(1, len(values))))
    for start in range(0, max(1, values.shape[1]), step):
        yield slice(start, start + step)


@dataclass(frozen=True, eq=False)
class _Moments:
    """All that the iterations need of some features.

    Attributes
    ----------
    mean, slopes, spread
        As in `Combat`, slopes (c, F) of standardised covariates.
    count : ndarray, shape (S, F)
        Values of each site.
    site_mean : ndarray, shape (S, F)
        Mean of each site's standardised values; 0 without any.
    squares : ndarray, shape (S, F)
        Sum of their squared distances from it.
    """

    mean: NDArray[np.float64]
    slopes: NDArray[np.float64]
    spread: NDArray[np.float64]
    count: NDArray[np.float64]
    site_mean: NDArray[np.float64]
    squares: NDArray[np.float64]


def _moments(
    values: NDArray[np.floating], codes: NDArray[np.int64], design: NDArray[np.float64]
) -> _Moments:
    """Fit sites and covariates to each feature by least squares, and sum up the residuals.

    Centring within sites leaves a regression on the covariates alone (Frisch & Waugh), so that no
    matrix is larger than they are many.

    Parameters
    ----------
    values : ndarray, shape (n, F)
    codes : ndarray of int, shape (n,)
        Place of each unit's site, in order.
    design : ndarray, shape (n, c)
        Covariates.
    """
    own = values.astype(np.float64)
    known = np.isfinite(own)
    own[~known] = 0
    # One column serves all features without gaps.
    used = np.ones((len(own), 1)) if known.all() else known.astype(np.float64)
    starts = np.searchsorted(codes, np.arange(codes[-1] + 1))
    count = np.add.reduceat(used, starts)
    each, total = np.maximum(count, 1), np.maximum(count.sum(axis=0), 1)
    site_mean = np.add.reduceat(own, starts) / each
    size = np.sqrt((count * site_mean**2).sum(axis=0) / total)
    own -= site_mean[codes]
    own *= used
    x_mean = [np.add.reduceat(x[:, None] * used, starts) / each for x in design.T]
    x_within = [(x[:, None] - m[codes]) * used for x, m in zip(design.T, x_mean, strict=True)]
    slopes = _regressed(own, x_within)
    for slope, x, m in zip(slopes, x_within, x_mean, strict=True):
        own -= slope * x
        site_mean -= slope * m
    own *= own
    squares = np.add.reduceat(own, starts)
    mean = (count * site_mean).sum(axis=0) / total
    spread = np.sqrt(squares.sum(axis=0) / total)
    spread[spread <= _TINY * size] = 0
    unit = np.where(spread > 0, spread, np.inf)
    return _Moments(
        mean=mean,
        slopes=slopes,
        spread=spread,
        count=np.broadcast_to(count, site_mean.shape),
        site_mean=np.where(count > 0, (site_mean - mean) / unit, 0),
        squares=squares / unit**2,
    )


def _regressed(
    own: NDArray[np.float64], x_within: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return slopes (c, F) of values (n, F) on c columns (n, F or 1), all centred."""
    if not x_within:
        return np.empty((0, own.shape[1]))
    # What hardly varies within sites is the site itself, but for rounding.
    x_within = [x * ((x**2).sum(axis=0) > 1e-10 * len(x)) for x in x_within]
    inner = np.array([[(x * y).sum(axis=0) for x in x_within] for y in x_within])
    outer = np.array([np.einsum("nf,nf->f", np.broadcast_to(x, own.shape), own) for x in x_within])
    # The pseudo-inverse: covariates that repeat each other share a slope, others have none.
    inverse = np.linalg.pinv(np.moveaxis(inner, -1, 0), rcond=1e-10, hermitian=True)
    return (inverse @ outer.T[:, :, None])[:, :, 0].T


def _posterior(
    count: NDArray[np.float64], site_mean: NDArray[np.float64], squares: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return shift and factor of each feature of one site, both (F,), given their moments (F,).

    With n values of mean m and spread s^2 (V and S the mean and variance of s^2 over features), the
    posterior means of Johnson et al. (2007), equations 3.1 and 3.2, depend on each other and are
    iterated. Those of the factors are multiplied by S here: it may be 0.
    """
    any_value, has_spread = count > 0, count > 1
    if not any_value.any():
        return np.zeros(count.shape), np.ones(count.shape)
    prior_mean, prior_variance = _mean_and_variance(site_mean[any_value])
    if has_spread.any():
        variances = squares[has_spread] / (count[has_spread] - 1)
        middle, width = _mean_and_variance(variances)
    else:
        middle, width = 1.0, 0.0
    if middle < _TINY:  # the same values in all units of the site, but for rounding
        middle, width = 1.0, 0.0
    strength = middle**2 + width
    shift, factor = site_mean, np.full(count.shape, middle)
    for _ in range(_MOST_STEPS):
        weight = count * prior_variance
        new_shift = (weight * site_mean + factor * prior_mean) / (weight + factor)
        distance = squares + count * (site_mean - new_shift) ** 2
        new_factor = (middle * strength + width * distance / 2) / (strength + width * count / 2)
        moved = np.abs(new_shift - shift).max() / max(np.abs(new_shift).max(), 1)
        stretched = np.abs(new_factor / factor - 1).max()
        shift, factor = new_shift, new_factor
        if max(moved, stretched) < _TOLERANCE:
            break
    return shift, np.sqrt(factor)


def _mean_and_variance(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean, and the variance with 1/(n - 1); that of a single value is 0."""
    return float(values.mean()), float(values.var(ddof=1)) if len(values) > 1 else 0.0
