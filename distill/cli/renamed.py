"""Settings that have another name now.

A row serves the same setting in every section that has it: ``teacher.chunk`` is found as ``matcher.chunk`` too. A name that
is still a key is never looked up, so a row may be written before its setting is renamed.
"""

from collections.abc import Callable

RENAMED: dict[str, str] = {
    # fit, label and compare
    "start": "init_from",
    "labels.offers": "labels.fallbacks",
    "labels.embeddings": "labels.prompt_cache",
    # data sets
    "data.bad": "data.on_error",
    "data.bad=error": "data.on_error=raise",
    # augmentation
    "augment.tilt": "augment.rotation",
    "augment.mirror": "augment.flip",
    # filters and matchers
    "filter=mirror": "filter=flip_agreement",
    "filter=concentration": "filter=peak_mass",
    "filter.criteria.mirror": "filter.criteria.flip_agreement",
    "filter.criteria.concentration": "filter.criteria.peak_mass",
    "matcher=judged": "matcher=rescored",
    "matcher.judge": "matcher.confidence_from",
    # teachers
    "preset": "teacher",
    "preset=default": "teacher=prompt_optimization",
    "preset=paper": "teacher=prompt_optimization_paper",
    "teacher.sides": "teacher.symmetry",
    "teacher.sides=ignore": "teacher.symmetry=none",
    "teacher.sides=mirror": "teacher.symmetry=flip_contrast",
    "teacher.sides=compete": "teacher.symmetry=negative_token",
    "teacher.confidence=second_look": "teacher.confidence=flip_consistency",
    "teacher.confidence=spread": "teacher.confidence=prompt_agreement",
    "teacher.confidence=mirror": "teacher.confidence=flip_agreement",
    "teacher.consensus_reach": "teacher.consensus_sigma",
    "teacher.consensus_mirror": "teacher.consensus_flip",
    "teacher.kept_points": "teacher.prompt_cache_size",
    "teacher.kept_images": "teacher.feature_cache_size",
    "teacher.chunk": "teacher.batch_size",
    "teacher.share": "teacher.share_prefix",
    "teacher.mirror": "teacher.flip",
    "teacher.mirror_tolerance": "teacher.flip_tolerance",
    "teacher.strength": "teacher.consensus",
    "teacher.remember": "teacher.feature_cache_size",
    "teacher.truncate": "teacher.truncate_unet",
    "teacher.block": "teacher.layers",
    # student
    "student.shortcut": "student.backbone_skip",
    # bench
    "ladder": "ablation",
    "ladder_pairs": "ablation_pairs",
    "levers": "increments",
    "straightforward": "reference",
    "straightforward_pairs": "reference_pairs",
    # pretrain
    "autoencoder.from": "autoencoder.init_from",
    "diffusion.from": "diffusion.init_from",
    "autoencoder.model.halvings": "autoencoder.model.num_downsamples",
    "diffusion.training.batch_size": "diffusion.batch_size",
    "diffusion.training.pool_size": "diffusion.latents.store.capacity",
    "diffusion.training.zoom": "diffusion.latents.blocks.zoom",
    "diffusion.fresh": "diffusion.latents.batches.fresh",
    "diffusion.ema": "diffusion.averaging.decay",
    "watch": "teacher_score",
    "watch.every": "teacher_score.every",
    "watch.pairs.n_pairs": "teacher_score.pairs.n_pairs",
}
"""From the old name of a key, or of a choice or value written ``key=value``, to the new one."""


def new_name(key: str, value: object, exists: Callable[[str], bool]) -> str | None:
    """Returns how ``key=value`` is written now, as part of an error message; None when it was not renamed.

    Args:
        key: as the user wrote it, dotted.
        value: that the user gave it.
        exists: says whether a dotted key is one of the command's.
    """
    row = RENAMED.get(f"{key}={value}") or RENAMED.get(key)
    if row is not None:
        return row
    section, _, last = key.rpartition(".")
    for old, new in RENAMED.items():
        old_section, _, old_last = old.rpartition(".")
        candidate = f"{section}.{new.rpartition('.')[2]}"
        if section and old_section and old_last in (last, f"{last}={value}") and exists(candidate.partition("=")[0]):
            return candidate
    return None
