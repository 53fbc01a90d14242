"""A cost model that is asked about one plan at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge.cost_model import CostModel, Forecast, PlanTable
from edge.plan import Plan
from shared.model_bundle import OperatingPoint


@dataclass(frozen=True, kw_only=True)
class OnePlanModel(CostModel):
    """With the operating points and the width of a model."""

    points: Sequence[OperatingPoint]
    hidden_size: int

    def seconds(self, plan: Plan) -> float:
        """A token's."""
        return float(self._forecast(plan).seconds(np.array([plan.window]))[0])

    def cloud_tokens(self, plan: Plan) -> float:
        """For each token of an answer."""
        return float(self._forecast(plan).cloud_tokens(np.array([plan.window]))[0])

    def agreement(self, plan: Plan) -> float:
        """With the full model."""
        return float(self._forecast(plan).agreement[0])

    def _forecast(self, plan: Plan) -> Forecast:
        return Forecast(self, PlanTable([plan], self.points, self.hidden_size))
