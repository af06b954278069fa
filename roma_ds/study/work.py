"""What a cell of a study works with."""

from __future__ import annotations

from dataclasses import dataclass

from roma_ds.config.study import StudyConfig
from roma_ds.pipeline.session import Session
from roma_ds.study.plan import Cell
from roma_ds.study.shared import TEXT_TASK, BaseTables, Tasks


@dataclass(frozen=True)
class Work:
    """What a cell works with."""

    study: StudyConfig
    tasks: Tasks
    cell: Cell
    session: Session
    tables: BaseTables

    @property
    def measured(self) -> tuple[str, ...]:
        """Tasks that this cell is measured on: a selection never sees what is reported."""
        if self.cell.purpose == "select":
            return self.tasks.select
        return (*self.tasks.report, *self.tasks.select)

    @property
    def rows(self) -> list[int]:
        """Rows of the evaluation data that are answered; plain text only for the report."""
        text = (TEXT_TASK,) if self.cell.purpose == "report" else ()
        return self.tasks.rows((*self.measured, *text))

    @property
    def columns(self) -> list[int]:
        """Places of the layers that are trained or steered among the MoE layers."""
        layout = self.session.whole.layout
        return [layout.layers.index(layer) for layer in layout.choose(self.cell.run.roma.layers)]
