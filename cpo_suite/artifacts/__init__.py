"""Every kind of artifact: what determines it, how it is built and loaded, and what it costs.

The fields of a class are what determines the artifact, other artifacts among them. Those declared
by `how()` say what it takes to build it: where data are, sizes of work, settings of a server.
"""

# ruff: noqa: F401 (imported here to be imported from here)
from .base_models import BaseModel, ExternalModel, UnpackedModel
from .evaluations import Generations, Measures, StoredVerdicts
from .examples import Examples
from .models import Ensemble, Model
from .negatives import ContrastSets, Negatives, Unhelpful
from .step import Step, planned_artifact
