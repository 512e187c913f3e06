"""A backbone's weights from a file."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from distill.core.errors import WeightsError
from distill.core.weights import check_finite, check_kinds, check_readable

POSITIONS = "pos_embed"


def load_weights(network: nn.Module, file: Path, name: str) -> None:
    """Fills all of ``network`` from a safetensors file, or raises and leaves it untouched.

    Position embeddings of a transformer that were trained at another image size are resampled.

    Args:
        network: a timm model.
        file: with the names and shapes of timm's model; other tensors are ignored.
        name: of the model, for messages.

    Raises:
        WeightsError: for a file that is missing, damaged, of another network, or whose weights are not finite.
    """
    check_readable(file)
    if not file.is_file():
        raise WeightsError(f"Expected weights of {name} in {file} but there is no such file; check student.weights.")
    try:
        given = load_file(file)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"Expected whole safetensors in {file} but got: {error}; copy the file again.") from error
    wanted = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    if POSITIONS in wanted and POSITIONS in given:
        given[POSITIONS] = _resampled(given[POSITIONS], network, wanted[POSITIONS])
    missing = [key for key in wanted if key not in given]
    differing = [key for key in wanted if key in given and given[key].shape != wanted[key].shape]
    if missing or differing:
        example = (missing + differing)[0]
        raise WeightsError(
            f"Expected weights of {name} in {file} but {len(missing)} tensors are missing and {len(differing)} have "
            f"another shape, such as {example}; choose the backbone that the file was made for."
        )
    used = {key: given[key] for key in wanted}
    check_kinds(used, wanted, file)
    check_finite(used, file)
    network.load_state_dict(used, strict=False)


def _resampled(given: Tensor, network: nn.Module, wanted: Tensor) -> Tensor:
    """Returns position embeddings (1, T, D) for the network's own grid; as they are where they are no such thing."""
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if given.shape == wanted.shape or given.ndim != 3 or wanted.ndim != 3 or grid is None:
        return given
    prefix = wanted.shape[1] - grid[0] * grid[1]
    side = round((given.shape[1] - prefix) ** 0.5)
    if prefix < 0 or side * side + prefix != given.shape[1]:
        return given
    return resample_abs_pos_embed(given, list(grid), num_prefix_tokens=prefix)
