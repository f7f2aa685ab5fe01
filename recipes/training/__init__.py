"""Training: one network of a system at a time, in one process or several, resumed bit for bit after a kill."""

from __future__ import annotations

from recipes.training._cost import ForwardFlops, costs, forward_flops
from recipes.training._errors import TrainingError
from recipes.training._files import locked, read_json, read_tensors, write_json, write_tensors
from recipes.training._logs import CsvFile, Log, TensorBoard, WeightsAndBiases, read_rows
from recipes.training._measure import measure, predictions
from recipes.training._optimizers import Adam, OptimizerSettings, Sgd
from recipes.training._processes import Processes, processes
from recipes.training._random import deterministic
from recipes.training._schedules import Constant, Cosine, FlatLinear, Piecewise, Schedule, Steps, WarmSteps
from recipes.training._session import Objective, Session
from recipes.training._settings import Runtime, Training
from recipes.training._signals import Interrupted, raised
from recipes.training._trainer import CHECKPOINT, DONE, Feed, Job, train

__all__ = [
    "CHECKPOINT",
    "DONE",
    "Adam",
    "Constant",
    "Cosine",
    "CsvFile",
    "Feed",
    "FlatLinear",
    "ForwardFlops",
    "Interrupted",
    "Job",
    "Log",
    "Objective",
    "OptimizerSettings",
    "Piecewise",
    "Processes",
    "Runtime",
    "Schedule",
    "Session",
    "Sgd",
    "Steps",
    "TensorBoard",
    "Training",
    "TrainingError",
    "WarmSteps",
    "WeightsAndBiases",
    "costs",
    "deterministic",
    "forward_flops",
    "locked",
    "measure",
    "predictions",
    "processes",
    "raised",
    "read_json",
    "read_rows",
    "read_tensors",
    "train",
    "write_json",
    "write_tensors",
]
