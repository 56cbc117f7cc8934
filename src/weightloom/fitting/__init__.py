"""Target networks on tasks: running, training and fine-tuning many at once."""

from weightloom.fitting.calibration import calibration, calibration_on, fit_temperature
from weightloom.fitting.closed_form import (
    closed_form_network,
    copies_of,
    discriminant,
    discriminant_left_out,
    discriminant_of_shares,
    left_out,
    left_out_residuals,
)
from weightloom.fitting.finetune import Curve, finetune, steps_until
from weightloom.fitting.interval import accuracy_interval, counted, interval_of
from weightloom.fitting.population import (
    accuracy,
    accuracy_on,
    images_at_once,
    initial_flats,
    recalibrate,
    run_networks,
    trunk_features,
)
from weightloom.fitting.predicting import Answer, Prediction, predict, with_card
from weightloom.fitting.train import FitSettings, Snapshot, fit_population
from weightloom.fitting.tuned import Start, Tuned, TuneSettings
from weightloom.fitting.tuning import tune

__all__ = [
    "Answer",
    "Curve",
    "FitSettings",
    "Prediction",
    "Snapshot",
    "Start",
    "TuneSettings",
    "Tuned",
    "accuracy",
    "accuracy_interval",
    "accuracy_on",
    "calibration",
    "calibration_on",
    "closed_form_network",
    "copies_of",
    "counted",
    "discriminant",
    "discriminant_left_out",
    "discriminant_of_shares",
    "finetune",
    "fit_population",
    "fit_temperature",
    "images_at_once",
    "initial_flats",
    "interval_of",
    "left_out",
    "left_out_residuals",
    "predict",
    "recalibrate",
    "run_networks",
    "steps_until",
    "trunk_features",
    "tune",
    "with_card",
]
