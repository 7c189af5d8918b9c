"""All kinds of artifacts: their fields, how they are built and loaded, and their cost.

The fields of a class, which may be other artifacts, determine its content. Fields declared by
`how()` do not: they give data sources, batch sizes and server settings for the build.
"""

# ruff: noqa: F401 (re-exported)
from .base_models import BaseModel, ExternalModel, UnpackedModel
from .evaluations import Generations, Measures, StoredVerdicts
from .examples import Examples
from .exposure_bias import ExposureBias
from .gradients import Gradients, MeasuredGradients
from .judge_quality import JudgeQuality, measured_quality
from .models import Ensemble, Model
from .negatives import ContrastSets, Negatives, Unhelpful
from .step import Step, planned_artifact
