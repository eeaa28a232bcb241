"""What .ci/deployment fetches to check files that no engine or cluster runs here."""

import os
from pathlib import Path

from tests.recipes import ROOT

TOOLS = Path(os.environ.get("DAL_DEPLOYMENT_TOOLS", ROOT / "build" / "tools"))
COMPOSE = TOOLS / "docker-compose"
HELM = TOOLS / "helm"
