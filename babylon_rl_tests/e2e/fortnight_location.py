"""The code location of the simulated fortnight: the project's own, with the resources of the running simulation."""

import os
from dataclasses import dataclass
from unittest.mock import patch

import dagster as dg

from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.code_location import code_location
from babylon_rl.models.server_process import Serving

JUDGE = "openai/gpt-4o-mini"  # a name with a price; the scripted judge answers


@dataclass
class Current:
    """What every sensor and run gets at the moment."""

    babylon: Babylon | None = None
    models: Serving | None = None


CURRENT = Current()


def _current(context: dg.InitResourceContext) -> Babylon:
    assert CURRENT.babylon is not None, "no simulation runs"
    return CURRENT.babylon


def _models(context: dg.InitResourceContext) -> Serving:
    assert CURRENT.models is not None, "no simulation runs"
    return CURRENT.models


# The conditions of a judge that is paid: an hour is judged once, after it has settled.
with patch.dict(os.environ, {"JUDGE_MODEL": JUDGE, "JUDGE_BASE_URL": "http://127.0.0.1:9/v1", "JUDGE_SETTLE_HOURS": "1"}):
    defs = code_location(dg.ResourceDefinition(_current), dg.ResourceDefinition(_models))
