"""The usual way to cross-validate on features, fold by fold with scikit-learn: the reference."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


class Deconfounder(TransformerMixin, BaseEstimator):
    """Take out of the features what the confounds, the last columns, explain in training."""

    def __init__(self, n_confounds=0):
        self.n_confounds = n_confounds

    def _split(self, values):
        width = values.shape[1] - self.n_confounds
        return values[:, :width], values[:, width:]

    def fit(self, values, _=None):
        features, confounds = self._split(values)
        # LinearRegression alone drops directions below 1e-6 of the largest: motion beside volume.
        self.regression_ = make_pipeline(StandardScaler(), LinearRegression())
        self.regression_.fit(confounds, features)
        return self

    def transform(self, values):
        features, confounds = self._split(values)
        return features - self.regression_.predict(confounds)


def explicit_predictions(features, confounds, labels, folds, penalties, scale_of, classes=0):
    """Predict everyone out of fold; of one repeat.

    Missing features are imputed in the outer training folds, as the inner folds only choose the
    penalty.
    """
    n = len(labels)
    predicted = np.full((n, classes) if classes else n, np.nan)
    chosen = {}
    for fold in np.unique(folds):
        train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        filled = SimpleImputer(keep_empty_features=True).fit(features[train]).transform(features)
        both = np.hstack([filled, confounds])
        width = confounds.shape[1]
        before = Deconfounder(width) if width else "passthrough"
        grid = [penalty * scale_of(folds != fold) for penalty in penalties]
        inner = PredefinedSplit(np.unique(folds[train], return_inverse=True)[1])
        if classes:
            model = LogisticRegression(tol=1e-10, max_iter=100_000)
            search = {"logisticregression__C": [1 / value for value in grid]}
            scoring = "neg_log_loss"
        else:
            model, search, scoring = Ridge(), {"ridge__alpha": grid}, "neg_mean_squared_error"
        best = GridSearchCV(make_pipeline(before, model), search, cv=inner, scoring=scoring)
        best.fit(both[train], labels[train])
        value = next(iter(best.best_params_.values()))
        chosen[fold] = (1 / value if classes else value) / scale_of(folds != fold)
        predicted[test] = best.predict_proba(both[test]) if classes else best.predict(both[test])
    return predicted, chosen
