"""The trained Temporal Fusion Transformer without the libraries that trained it: compiled loops over its weights.

The graph is that of pytorch-forecasting (Lim, Arik, Loeff, Pfister, 2021, Temporal fusion transformers for
interpretable multi-horizon time series forecasting, International Journal of Forecasting 37) in evaluation, without
static variables and categories. Every sum runs in one fixed order in float64, so a bar's forecast is the same bits
alone and in a batch, with any number of threads. The selection of variables reads one bar at a time and is done once
for each bar, however many windows hold it.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

from mlbot_core.models.tft_weights import Grn, Lstm, Network, Selection

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_EPSILON: Final = 1e-5  # of torch.nn.LayerNorm


@njit(cache=True, nogil=True)
def _linear(x: FloatArray, w: FloatArray, b: FloatArray, out: FloatArray) -> None:
    out[:] = b
    for i in range(x.size):
        xi = x[i]
        for j in range(out.size):
            out[j] += xi * w[i, j]


@njit(cache=True, nogil=True)
def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@njit(cache=True, nogil=True)
def _norm(x: FloatArray, w: FloatArray, b: FloatArray) -> None:
    mean = 0.0
    for i in range(x.size):
        mean += x[i]
    mean /= x.size
    variance = 0.0
    for i in range(x.size):
        variance += (x[i] - mean) ** 2
    scale = 1.0 / math.sqrt(variance / x.size + _EPSILON)
    for i in range(x.size):
        x[i] = (x[i] - mean) * scale * w[i] + b[i]


@njit(cache=True, nogil=True)
def _gate(
    x: FloatArray, skip: FloatArray, wg: FloatArray, bg: FloatArray, nw: FloatArray, nb: FloatArray, out: FloatArray
) -> None:
    """Gated linear unit of x, plus the skip, layer norm."""
    n = out.size
    both = np.empty(2 * n)
    _linear(x, wg, bg, both)
    for j in range(n):
        out[j] = both[j] * _sigmoid(both[n + j]) + skip[j]
    _norm(out, nw, nb)


@njit(cache=True, nogil=True)
def _hidden(x: FloatArray, w1: FloatArray, b1: FloatArray, w2: FloatArray, b2: FloatArray) -> FloatArray:
    first = np.empty(b1.size)
    _linear(x, w1, b1, first)
    for j in range(first.size):
        if first[j] < 0.0:
            first[j] = math.expm1(first[j])
    second = np.empty(b2.size)
    _linear(first, w2, b2, second)
    return second


@njit(cache=True, nogil=True)
def _grn(x: FloatArray, skip: FloatArray, g: Grn, out: FloatArray) -> None:
    _gate(_hidden(x, g.w1, g.b1, g.w2, g.b2), skip, g.wg, g.bg, g.nw, g.nb, out)


@njit(cache=True, nogil=True)
def _resample(x: FloatArray, gate: FloatArray, w: FloatArray, b: FloatArray, out: FloatArray) -> None:
    """Linear interpolation between aligned ends, a learnt gate (stored as its factor), layer norm."""
    n, m = x.size, out.size
    for j in range(m):
        at = 0.0 if m == 1 else j * ((n - 1) / (m - 1))
        low = min(int(at), n - 1)
        share = at - low
        out[j] = ((1.0 - share) * x[low] + share * x[min(low + 1, n - 1)]) * gate[j]
    _norm(out, w, b)


@njit(cache=True, nogil=True)
def _embed(z: FloatArray, s: Selection, flat: FloatArray, single: FloatArray) -> None:
    """Take each variable of one bar through its own network: ``flat`` (variables, small), ``single`` (.., hidden)."""
    skip = np.empty(single.shape[1])
    for v in range(z.size):
        for j in range(flat.shape[1]):
            flat[v, j] = z[v] * s.pw[v, j] + s.pb[v, j]
        _resample(flat[v], s.r_gate[v], s.rw[v], s.rb[v], skip)
        inner = _hidden(flat[v], s.w1[v], s.b1[v], s.w2[v], s.b2[v])
        _gate(inner, skip, s.wg[v], s.bg[v], s.nw[v], s.nb[v], single[v])


@njit(cache=True, nogil=True)
def _select(flat: FloatArray, single: FloatArray, s: Selection, weights: FloatArray, out: FloatArray) -> None:
    """Weigh the variables of one bar and add them up."""
    n = weights.size
    line = flat.reshape(flat.size)
    skip = np.empty(n)
    _resample(line, s.f_gate, s.fw, s.fb, skip)
    _grn(line, skip, s.flat, weights)
    _softmax(weights)
    out[:] = 0.0
    for v in range(n):
        for j in range(out.size):
            out[j] += weights[v] * single[v, j]


@njit(cache=True, nogil=True)
def _softmax(x: FloatArray) -> None:
    top = x.max()
    total = 0.0
    for i in range(x.size):
        x[i] = math.exp(x[i] - top)
        total += x[i]
    for i in range(x.size):
        x[i] /= total


@njit(cache=True, nogil=True)
def select_bars(z: FloatArray, s: Selection, hidden: int) -> tuple[FloatArray, FloatArray]:
    """Return the selected variables of each bar, shape (bars, hidden), and their weights, shape (bars, variables)."""
    n, variables = z.shape
    out = np.empty((n, hidden))
    weights = np.empty((n, variables))
    flat = np.empty((variables, s.pw.shape[1]))
    single = np.empty((variables, hidden))
    for i in range(n):
        _embed(z[i], s, flat, single)
        _select(flat, single, s, weights[i], out[i])
    return out, weights


@njit(cache=True, nogil=True)
def _lstm(x: FloatArray, p: Lstm, h: FloatArray, c: FloatArray) -> None:
    n = h.size
    gates = np.empty(4 * n)
    _linear(x, p.wx, p.b, gates)
    for i in range(n):
        for j in range(4 * n):
            gates[j] += h[i] * p.wh[i, j]
    for j in range(n):
        keep = _sigmoid(gates[n + j]) * c[j]
        c[j] = keep + _sigmoid(gates[j]) * math.tanh(gates[2 * n + j])
        h[j] = _sigmoid(gates[3 * n + j]) * math.tanh(c[j])


@njit(cache=True, nogil=True)
def _window(
    past: FloatArray, ahead: FloatArray, net: Network, first: int, quantiles: FloatArray, attention: FloatArray
) -> None:
    """One window: selected variables of the past and of the decoder's bars to quantiles of the steps from ``first``.

    ``quantiles`` has shape (steps - first, levels); ``attention`` (past + steps,) is that of the last step, the mean of
    all heads.
    """
    length, steps, size = past.shape[0], ahead.shape[0], past.shape[1]
    total = length + steps
    h, c = net.h0.copy(), net.c0.copy()
    local = np.empty((total, size))
    rich = np.empty((total, size))
    g = net.lstm_gate
    for t in range(total):
        x = past[t] if t < length else ahead[t - length]
        _lstm(x, net.lstm_encoder if t < length else net.lstm_decoder, h, c)
        _gate(h, x, g.wg, g.bg, g.nw, g.nb, local[t])
        _grn(local[t], local[t], net.enrich, rich[t])

    a = net.attention
    heads, _, depth = a.wk.shape
    keys = np.empty((heads, total, depth))
    values = np.empty((total, depth))
    for t in range(total):
        _linear(rich[t], a.wv, a.bv, values[t])
        for head in range(heads):
            _linear(rich[t], a.wk[head], a.bk[head], keys[head, t])
    query, mixed, joined = np.empty(depth), np.empty(depth), np.empty(size)
    attended, fed, out = np.empty(size), np.empty(size), np.empty(size)
    none = np.zeros(size)
    for step in range(first, steps):
        reach = length + step  # a step attends to everything before itself
        x = rich[length + step]
        mixed[:] = 0.0
        attention[:] = 0.0
        for head in range(heads):
            _linear(x, a.wq[head], a.bq[head], query)
            score = np.empty(reach)
            for t in range(reach):
                dot = 0.0
                for j in range(depth):
                    dot += query[j] * keys[head, t, j]
                score[t] = dot / math.sqrt(depth)
            _softmax(score)
            for t in range(reach):
                attention[t] += score[t] / heads
                for j in range(depth):
                    mixed[j] += score[t] * values[t, j] / heads
        _linear(mixed, a.wo, none, joined)
        g = net.attention_gate
        _gate(joined, x, g.wg, g.bg, g.nw, g.nb, attended)
        _grn(attended, attended, net.feed, fed)
        g = net.output_gate
        _gate(fed, local[length + step], g.wg, g.bg, g.nw, g.nb, out)
        _linear(out, net.wo, net.bo, quantiles[step - first])


@njit(cache=True, nogil=True)
def forecast_windows(
    past: FloatArray, ahead: FloatArray, last: IntArray, length: int, every: int, steps: int, first: int, net: Network
) -> tuple[FloatArray, FloatArray]:
    """Forecast windows of bars.

    Parameters
    ----------
    past, ahead
        Selected variables of each bar for the encoder and the decoder, shape (bars, hidden); ``ahead`` goes on for
        ``every * steps`` bars after the last of ``last``.
    last
        Last bar of each window's encoder.
    length, every, steps
        Bars of the encoder, bars from one decoder step to the next, decoder steps.
    first
        First decoder step to forecast.

    Returns
    -------
    quantiles
        Shape (windows, steps - first, levels).
    attention
        Shape (windows, length + steps): of the last step, the mean of all heads; sums to 1.
    """
    quantiles = np.empty((last.size, steps - first, net.bo.size))
    attention = np.empty((last.size, length + steps))
    steps_ahead = np.empty((steps, past.shape[1]))
    for i in range(last.size):
        for k in range(steps):
            steps_ahead[k] = ahead[last[i] + every * (k + 1)]
        _window(past[last[i] - length + 1 : last[i] + 1], steps_ahead, net, first, quantiles[i], attention[i])
    return quantiles, attention


@njit(cache=True, nogil=True)
def toggle_windows(
    z: FloatArray,
    ahead: FloatArray,
    last: IntArray,
    length: int,
    every: int,
    steps: int,
    orders: IntArray,
    net: Network,
) -> FloatArray:
    """Forecast windows in which features appear one after the other, each in all bars at once.

    Parameters
    ----------
    z
        Inputs of the bars, shape (bars, variables). A feature that has not appeared yet is 0.
    orders
        Shape (orders, features): the features in the order in which they appear; other variables are always there.

    Returns
    -------
    FloatArray
        Quantiles of the last step, shape (windows, orders, features + 1, levels).
    """
    variables, size, small = z.shape[1], net.h0.size, net.encoder.pw.shape[1]
    count = orders.shape[1]
    result = np.empty((last.size, orders.shape[0], count + 1, net.bo.size))
    blank_flat, blank_single = np.empty((variables, small)), np.empty((variables, size))
    _embed(np.zeros(variables), net.encoder, blank_flat, blank_single)
    full_flat, full_single = np.empty((length, variables, small)), np.empty((length, variables, size))
    flat, single = np.empty((length, variables, small)), np.empty((length, variables, size))
    past, weights = np.empty((length, size)), np.empty(variables)
    steps_ahead, attention = np.empty((steps, size)), np.empty(length + steps)
    for i in range(last.size):
        for t in range(length):
            _embed(z[last[i] - length + 1 + t], net.encoder, full_flat[t], full_single[t])
        for k in range(steps):
            steps_ahead[k] = ahead[last[i] + every * (k + 1)]
        for o in range(orders.shape[0]):
            flat[:], single[:] = full_flat, full_single
            for v in orders[o]:
                flat[:, v], single[:, v] = blank_flat[v], blank_single[v]
            for step in range(count + 1):
                if step > 0:
                    v = orders[o, step - 1]
                    flat[:, v], single[:, v] = full_flat[:, v], full_single[:, v]
                for t in range(length):
                    _select(flat[t], single[t], net.encoder, weights, past[t])
                _window(past, steps_ahead, net, steps - 1, result[i, o, step : step + 1], attention)
    return result
