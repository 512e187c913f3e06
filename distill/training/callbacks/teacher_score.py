"""The PCK of a teacher on a diffusion model, while that model trains."""

from collections.abc import Callable
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from distill.core.protocols import Benchmark, Matcher, PairMatcher
from distill.evaluation.evaluate import evaluate


class TeacherScore(Callback):
    """Logs the teacher's PCK@0.10 per image with the pipeline as it stands, as ``val/pck@0.10`` in percent.

    Add it after the callback that writes the pipeline.

    Args:
        folder: of the pipeline.
        teacher: makes a matcher; called with the pipeline's folder as ``model``.
        pairs: annotated pairs, of a split that neither training nor the final test uses.
        every: after how many validations.
    """

    def __init__(
        self, folder: Path, teacher: Callable[..., Matcher | PairMatcher], pairs: Benchmark, every: int
    ) -> None:
        self.folder, self.teacher, self.pairs, self.every = folder, teacher, pairs, every
        self._validations = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates at every ``every``-th validation."""
        self._validations += 1
        if self._validations % self.every == 0:
            self._score(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates the result."""
        self._score(trainer)

    def _score(self, trainer: Trainer) -> None:
        teacher = self.teacher(model=str(self.folder))
        score = evaluate(teacher, self.pairs, "teacher", progress=False).report["pck"]["image"]["0.10"]
        assert trainer.logger is not None
        trainer.logger.log_metrics({"val/pck@0.10": score}, step=trainer.global_step)
