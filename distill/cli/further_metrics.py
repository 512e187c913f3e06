"""The metrics that a configuration adds to those of a comparison."""

import inspect

from omegaconf import DictConfig
from torchmetrics import Metric

from distill.cli.config import built_by_name
from distill.core.errors import ConfigError


def metrics_of(cfg: DictConfig) -> dict[str, Metric]:
    """Returns what ``metrics`` describes, by name.

    Raises:
        ConfigError: for what is no torchmetrics metric, or is not updated with what :func:`distill.evaluation.evaluate.evaluate`
            gives.
    """
    metrics = built_by_name(cfg, "metrics", Metric)
    for name, metric in metrics.items():
        try:
            inspect.signature(metric.update).bind("predicted", "truth", "kps_mask", "pck_threshold")
        except TypeError as error:
            raise ConfigError(
                f"Expected metrics.{name} to have update(predicted, truth, kps_mask, pck_threshold) but "
                f"{type(metric).__name__}.update takes {inspect.signature(metric.update)}; docs/how-to/metric.md shows one."
            ) from error
    return metrics
