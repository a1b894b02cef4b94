"""Where a classifier is wrong: the classes that it confuses, and the examples that it is wrongly sure of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lora_a2.display.progress import percent
from lora_a2.report.blocks import Cell, Figure, Section, Table, table
from lora_a2.report.heat import Grid, heat_map

if TYPE_CHECKING:
    from lora_a2.runs.mistakes import Mistakes

MAX_CLASSES = 10
"""Rows of the picture."""
ANOTHER = "any other"


def mistakes_section(title: str, found: Mistakes) -> Section:
    """The worst classes and what they are taken for, and the examples; a sentence if nothing is wrong."""
    said = f"The global model is wrong on {found.num_wrong:,} of {found.num_examples:,} test examples."
    if not found.num_wrong:
        return Section(title, (said,))
    classes = _worst_classes(found)
    figure = Figure(
        "The worst classes",
        "Of the test examples of each class (row) the share that the model takes for each class (column); the diagonal is what "
        f"is right. {_chosen(len(classes), len(found.label_names))}",
        heat_map(_grid(found, classes), numbers=True, domain=(0, 1), step=30),
        _table(found, classes),
    )
    examples = table(
        ["Text, as the model reads it", "Label", "Predicted", "Probability", "Client"],
        [(one.text, one.label, one.predicted, percent(one.probability), one.client) for one in found.worst],
    )
    sure = f"Below: the {len(found.worst)} wrong examples with the highest probability."
    return Section(title, (said, sure), figures=(figure,), tables=(("", examples),))


def _chosen(shown: int, known: int) -> str:
    return (
        f"The {shown} of {known} classes with the lowest F1, the lowest first." if shown < known else "Lowest F1 first."
    )


def _f1(found: Mistakes) -> np.ndarray:
    """(C,) float64; 1 for a class that neither occurs nor is predicted."""
    hits = found.confusion.diagonal()
    both = found.confusion.sum(0) + found.confusion.sum(1)
    return np.asarray(np.divide(2 * hits, both, out=np.ones(len(hits)), where=both > 0))


def _worst_classes(found: Mistakes) -> list[int]:
    """The classes with test examples by F1, the lowest first."""
    order = np.argsort(_f1(found), kind="stable")
    return [int(k) for k in order if found.confusion[k].sum()][:MAX_CLASSES]


def _grid(found: Mistakes, classes: list[int]) -> Grid:
    names = [found.label_names[k] for k in classes]
    others = [k for k in range(len(found.label_names)) if k not in classes]
    cells = []
    for k in classes:
        counts = {
            **{found.label_names[j]: found.confusion[k, j] for j in classes},
            ANOTHER: found.confusion[k, others].sum(),
        }
        total = found.confusion[k].sum()
        cells += [
            {"y": found.label_names[k], "x": name, "value": round(float(count / total), 4), "examples": int(count)}
            for name, count in counts.items()
            if count
        ]
    across = [*names, ANOTHER] if others else names
    return Grid(across, names, cells, ("Predicted", "Label", "Share"), ".0%", notes=(("examples", "Test examples"),))


def _table(found: Mistakes, classes: list[int]) -> Table:
    scores = _f1(found)
    rows: list[tuple[Cell, ...]] = []
    for k in classes:
        own = found.confusion[k]
        taken = [int(j) for j in np.argsort(-own, kind="stable") if j != k and own[j]]
        listed = ", ".join(f"{found.label_names[j]} {own[j]}" for j in taken)
        rows.append((found.label_names[k], int(own.sum()), int(own[k]), percent(float(scores[k])), listed))
    return table(["Label", "Test examples", "Right", "F1", "Taken for"], rows)
