"""How many independent trials were there? Clusters of trials whose returns move together.

A hundred variations of one idea are not a hundred chances to be lucky. Trials are clustered by the correlation of
their returns; each cluster counts as one trial, with the returns of its members weighted by inverse variance, and the
spread of the clusters' Sharpe ratios is what the deflated Sharpe ratio needs.

The procedure is that of Lopez de Prado and Lewis, with two differences that make it repeatable. Their K-means from
random starts becomes Ward's hierarchical clustering, which minimises the same sum of squares without chance; among its
partitions the one of the best silhouette quality (mean over standard deviation) is taken, as in theirs. And where they
cluster the poor clusters again, a cluster here is believed only if the two halves that it was joined from correlate
more than the largest correlation to expect by chance among so many pairs of unrelated trials over so many days;
otherwise it is split, and so on down to single trials. Where no partition has structure (mean silhouette below 0.25),
the number is interpolated by the mean correlation r as ``r + (1 - r) N`` (Bailey and Lopez de Prado 2014, appendix 3).

Sources
-------
M. Lopez de Prado and M. Lewis, "Detection of False Investment Strategies Using Unsupervised Learning Methods",
Quantitative Finance 19(9), 2019 (working paper 2018).
L. Kaufman and P. Rousseeuw, "Finding Groups in Data", Wiley 1990, chapter 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.validation.intervals import IntArray
from mlbot_core.validation.resampling import FloatArray, check_panel
from mlbot_core.validation.significance import DAYS_PER_YEAR, sharpe_ratio

# Below this mean silhouette there is no substantial structure (Kaufman and Rousseeuw 1990, table 4).
STRUCTURE: Final = 0.25


@dataclass(frozen=True, eq=False)
class EffectiveTrials:
    """Independent trials behind many correlated ones.

    Parameters
    ----------
    number
        Effective number of trials, between 1 and ``trials``: what the deflated Sharpe ratio takes as ``n_trials``.
    sharpe_variance
        Variance over the clusters of their ANNUAL Sharpe ratios; what it takes as ``trial_variance``. 0 for a single
        cluster.
    labels
        Cluster of each trial, numbered by first appearance; shape (trials,).
    cluster_sharpes
        Annual Sharpe ratio of each cluster's returns; 0 for one that never traded.
    silhouette
        Mean silhouette of the partition that was chosen, before clusters were split; NaN for fewer than three
        trials.
    mean_correlation
        Mean over all pairs of trials.
    structured
        Whether ``number`` is the number of clusters (true), or interpolated by the mean correlation since no
        partition had structure (false; each trial is then its own cluster).
    trials, days
        Size of the input.
    """

    number: float
    sharpe_variance: float
    labels: IntArray
    cluster_sharpes: FloatArray
    silhouette: float
    mean_correlation: float
    structured: bool
    trials: int
    days: int


def effective_trials(returns: npt.ArrayLike, periods_per_year: float = DAYS_PER_YEAR) -> EffectiveTrials:
    """Return the effective number of trials and the variance of their Sharpe ratios.

    Parameters
    ----------
    returns
        Simple returns (fractions) a day of every trial, shape (days, trials), over the same days; flat days are 0.
        Trials that never traded are alike.
    periods_per_year
        365 for daily returns around the clock.

    Raises
    ------
    StatisticsError
        If there are fewer than three days, or a return is NaN or infinite.

    Examples
    --------
    Sixty variations of three ideas:

    >>> random = np.random.default_rng(0)
    >>> ideas = random.normal(0, 0.01, (500, 3))
    >>> found = effective_trials(np.repeat(ideas, 20, axis=1) + random.normal(0, 0.005, (500, 60)))
    >>> found.number, found.cluster_sharpes.shape
    (3.0, (3,))
    """
    panel = check_panel(np.asarray(returns, dtype=np.float64), least=3)
    days, trials = panel.shape
    correlation = _correlation(panel)
    pairs = correlation[np.triu_indices(trials, 1)]
    mean = float(pairs.mean()) if trials > 1 else math.nan
    silhouette, structured = math.nan, False
    labels = np.arange(trials, dtype=np.int64)
    if trials > 2:
        merges, count, silhouette = _best_partition(correlation)
        structured = silhouette >= STRUCTURE
        if structured:
            labels = _believed(merges, count, correlation, _noise(trials, days))
    number = float(labels.max() + 1)
    if not structured and trials > 1:
        shared = min(1.0, max(0.0, mean if mean > _noise(trials, days) else 0.0))
        number = shared + (1.0 - shared) * trials
    sharpes = np.array([_cluster_sharpe(panel[:, labels == k], periods_per_year) for k in range(labels.max() + 1)])
    return EffectiveTrials(
        number=number,
        sharpe_variance=float(sharpes.var(ddof=1)) if len(sharpes) > 1 else 0.0,
        labels=labels,
        cluster_sharpes=sharpes,
        silhouette=silhouette,
        mean_correlation=mean,
        structured=structured,
        trials=trials,
        days=days,
    )


def _correlation(panel: FloatArray) -> FloatArray:
    """Correlation of the columns; those that never move correlate 1 with each other and 0 with the rest."""
    centred = panel - panel.mean(axis=0)
    norm = np.sqrt(np.einsum("ij,ij->j", centred, centred))
    still = norm <= 1e-12 * np.abs(panel).max(axis=0) * math.sqrt(len(panel))
    unit = np.where(still, 0.0, centred / np.where(still, 1.0, norm))
    correlation = np.clip(unit.T @ unit, -1.0, 1.0)
    correlation[np.ix_(still, still)] = 1.0
    np.fill_diagonal(correlation, 1.0)
    result: FloatArray = (correlation + correlation.T) / 2.0
    return result


def _noise(trials: int, days: int) -> float:
    """Largest correlation to expect among all pairs of unrelated trials: each is normal with variance 1 / days."""
    return math.sqrt(2.0 * math.log(max(2.0, trials * (trials - 1) / 2.0)) / days)


def _best_partition(correlation: FloatArray) -> tuple[IntArray, int, float]:
    """Return the tree of merges, after how many of them the silhouette quality is best, and the mean silhouette."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    # The distance of two trials is how differently they lie from all others (Lopez de Prado and Lewis, eq. 3).
    near = np.sqrt(np.maximum(0.0, (1.0 - correlation) / 2.0))
    gram = near @ near
    size = np.diag(gram)
    far = np.sqrt(np.maximum(0.0, size[:, None] + size[None, :] - 2.0 * gram))
    np.fill_diagonal(far, 0.0)
    far = (far + far.T) / 2.0
    tree = linkage(squareform(far, checks=False), method="ward")
    merges = tree[:, :2].astype(np.int64)
    mean, std = _silhouettes(far, merges)
    # Index k: after k merges. One cluster and all apart have no silhouette.
    with np.errstate(divide="ignore", invalid="ignore"):
        quality = np.where(mean > 0, mean / std, -np.inf)
    quality[0] = quality[-1] = -np.inf
    best = int(np.argmax(quality))
    return merges, best, float(mean[best])


def _believed(merges: IntArray, count: int, correlation: FloatArray, bound: float) -> IntArray:
    """Return the labels after so many merges, less those merges that only chance explains.

    A cluster stays if the two halves that its last merge joined correlate with each other more than chance would have
    it; otherwise each half is looked at in its turn.
    """
    trials = len(correlation)
    members: dict[int, list[int]] = {k: [k] for k in range(trials)}
    for at, (left, right) in enumerate(merges[:count].tolist()):
        members[trials + at] = members[left] + members[right]
    joined = set(merges[:count].ravel().tolist())
    waiting = [node for node in members if node not in joined]
    found: list[list[int]] = []
    while waiting:
        node = waiting.pop()
        if node >= trials:
            left, right = merges[node - trials].tolist()
            if float(correlation[np.ix_(members[left], members[right])].mean()) <= bound:
                waiting += [left, right]
                continue
        found.append(members[node])
    labels = np.empty(trials, dtype=np.int64)
    for number, group in enumerate(sorted(found, key=min)):
        labels[group] = number
    return labels


def _cluster_sharpe(members: FloatArray, periods_per_year: float) -> float:
    """Annual Sharpe ratio of the members weighted by inverse variance; 0 where nothing moves."""
    variance = members.var(axis=0, ddof=1)
    moving = variance > 1e-24 * np.square(np.abs(members).max(axis=0))
    if not moving.any():
        return 0.0
    weights = 1.0 / variance[moving]
    value = sharpe_ratio(members[:, moving] @ (weights / weights.sum()), periods_per_year)
    return 0.0 if math.isnan(value) else value


@njit(cache=True)
def _silhouettes(far: Any, merges: Any) -> Any:
    """Mean and standard deviation of the silhouettes after each number of merges, from all apart to one cluster.

    Sums of distances to each cluster are kept; a merge moves the nearest other cluster of only those items that had
    one of the two as nearest or are in it, because the mean distance to the union lies between those to its parts.
    """
    n = len(far)
    sums = far.copy()
    size = np.ones(n)
    own = np.arange(n)
    # Position in `sums` of the clusters of the tree, and whether a position is in use.
    place = np.empty(2 * n - 1, dtype=np.int64)
    place[:n] = np.arange(n)
    used = np.ones(n, dtype=np.bool_)
    nearest = np.full(n, -1, dtype=np.int64)
    mean, std = np.zeros(n), np.zeros(n)
    for step in range(n):
        u, v = -1, -1
        if step > 0:
            u, v = place[merges[step - 1, 0]], place[merges[step - 1, 1]]
            place[n + step - 1] = u
            used[v] = False
            size[u] += size[v]
            for i in range(n):
                sums[i, u] += sums[i, v]
                if own[i] == v:
                    own[i] = u
        total, square = 0.0, 0.0
        for i in range(n):
            if step == 0 or own[i] == u or nearest[i] == u or nearest[i] == v:
                least, at = np.inf, -1
                for c in range(n):
                    if used[c] and c != own[i]:
                        distance = sums[i, c] / size[c]
                        if distance < least:
                            least, at = distance, c
                nearest[i] = at
            if size[own[i]] > 1.0 and nearest[i] >= 0:
                inside = sums[i, own[i]] / (size[own[i]] - 1.0)
                outside = sums[i, nearest[i]] / size[nearest[i]]
                top = max(inside, outside)
                value = (outside - inside) / top if top > 0.0 else 0.0
                total += value
                square += value * value
        mean[step] = total / n
        std[step] = math.sqrt(max(0.0, square / n - mean[step] ** 2))
    return mean, std
