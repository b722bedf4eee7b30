"""The stages of clicks, in their order: what a test of the whole method goes through."""

from rayrec import stages
from rayrec.stages import Task

STAGES = {stage: spec for stage, spec in stages.STAGES.items() if Task.CLICK in spec.tasks}
