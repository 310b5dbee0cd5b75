"""The threshold between air and head."""

import numpy as np
import pytest
import SimpleITK as sitk

from bsym_bids.dwi.masking import otsu


@pytest.mark.parametrize("kind", ["two", "skewed", "three"])
def test_the_threshold_is_that_of_itk(kind):
    rng = np.random.default_rng(0)
    values = {
        "two": [rng.normal(10, 3, 5000), rng.normal(60, 8, 9000)],
        "skewed": [rng.gamma(1.5, 30, 20_000)],
        "three": [rng.rayleigh(5, 20_000), rng.normal(80, 9, 9000), rng.normal(140, 9, 500)],
    }[kind]
    values = np.concatenate(values).astype(np.float32)
    reference = sitk.OtsuThresholdImageFilter()
    reference.SetNumberOfHistogramBins(256)
    reference.SetReturnBinMidpoint(True)
    reference.Execute(sitk.GetImageFromArray(values[None, None]))
    assert otsu(values) == pytest.approx(reference.GetThreshold(), abs=1e-3 * float(np.ptp(values)))


def test_nothing_is_below_the_threshold_of_values_that_are_alike():
    assert otsu(np.full(9, 3.0)) == otsu(np.array([])) == 0
