"""Quality against the memory that generating takes: the weights, and the keys and values of the tokens so far."""

import math

import pandas as pd
from matplotlib.figure import Figure

from qbench.render.style import heading, log_ticks, styled
from qbench.report.figures.panels import NothingToShow, chosen, handles, looks, quality_axis, value
from qbench.report.figures.pareto import draw_front, marker_sizes
from qbench.shape import RELEASED

TOKENS, BATCHES = (1, 4096, 32_768), (1, 16)
GIB = 2**30


@styled
def memory(df: pd.DataFrame, metrics: tuple[str, ...] = ()) -> Figure:
    """One metric against weights + 16-bit keys and values in GiB, a panel per tokens and batch, with one front each.

    A model is in the panels of as many tokens as it takes. By default the first perplexity; NothingToShow where no
    model takes 4,096 tokens, as the weights alone are the size axis of ``pareto``.
    """
    t, columns = chosen(df, metrics)
    directed = [c for c in columns if c.higher_is_better is not None]
    rows = [r for r in t.rows if r.model in RELEASED and math.isfinite(r.model_bytes)]
    tokens = [n for n in TOKENS if any(RELEASED[r.model].positions >= n for r in rows)]
    if not directed or len(tokens) < 2:
        raise NothingToShow("no metric with a better side, or no model of known shape that takes 4,096 tokens")
    c, styles = directed[0], looks(rows)
    sizes = marker_sizes(list(dict.fromkeys(r.model for r in rows)))
    fig = Figure(figsize=(7.0, 5.0), layout="constrained")
    axes = fig.subplots(len(BATCHES), len(tokens), sharey=True, squeeze=False)
    for line, batch in zip(axes, BATCHES):
        for ax, n in zip(line, tokens):
            shown = [r for r in rows if r.cells[c.key].finite and RELEASED[r.model].positions >= n]
            gib = [(r.model_bytes + batch * n * RELEASED[r.model].cache_bytes) / GIB for r in shown]
            end = quality_axis([ax], c, rows)
            log_ticks(ax, "x", gib)
            draw_front(ax, c, [(x, value(r, c, end), r) for x, r in zip(gib, shown)], styles, sizes)
            ax.set_title(f"{n:,} token{'s' * (n > 1)}, batch {batch}")
            ax.set_ylabel(ax.get_ylabel() if ax is line[0] else "")
    for ax in axes[-1]:
        ax.set_xlabel("weights, keys and values, GiB")
    fig.legend(handles=handles(rows, styles, lines=False), loc="outside lower center", ncols=4)
    heading(
        fig,
        "Quality against the memory of generating (larger markers: larger models; pale: not on the front)",
        t.left_out,
    )
    return fig
