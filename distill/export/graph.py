"""From a torch module to an ONNX graph: operator set 18, named free dimensions, the lowest IR version."""

from collections.abc import Mapping, Sequence

import onnx
import torch
from torch import Tensor, nn

from distill.core.errors import ExportError, in_one_line
from distill.system.garbage import without_collection

OPSET = 18  # newer ones break TensorRT, older ones WebGPU


def trace(
    module: nn.Module,
    name: str,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    free: Mapping[str, Mapping[int, str]],
) -> onnx.ModelProto:
    """Traces a module on the CPU.

    Args:
        module: that is called with ``inputs`` in their order.
        name: of the network, for messages.
        inputs: examples by name; a free side is neither 0 nor 1 px, which the exporter would take for a constant.
        outputs: names of what the module returns.
        free: names of the dimensions that stay free, by input and axis.

    Returns:
        The graph with the exporter's notes, see :func:`finish`.

    Raises:
        ExportError: when torch cannot export the module.
    """
    dynamic = torch.export.Dim.DYNAMIC  # named dimensions are silently fixed by some networks
    shapes = tuple({axis: dynamic for axis in free.get(key, {})} for key in inputs)
    try:
        with without_collection():
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter raises whatever a network's code stumbles on
        cause = error.__cause__ or error
        raise ExportError(
            f"Expected a student that torch exports to ONNX but {name} is none: {type(cause).__name__}, "
            f"{in_one_line(cause, 160).rstrip('.')}; the student itself works without the file. Backbones that export: resnet, mobilenet, "
            "convnext, swin, fastvit, dinov2."
        ) from error
    assert program is not None  # only the older exporter, dynamo=False, returns None
    model = program.model_proto
    _name_dimensions(model, free)
    return model


def finish(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes the exporter's notes, in place, lowers the IR version to what the operator sets need, and checks the graph."""
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.ir_version = onnx.helper.find_min_ir_version_for(kept)
    onnx.checker.check_model(model, full_check=True)
    return model


def _name_dimensions(model: onnx.ModelProto, free: Mapping[str, Mapping[int, str]]) -> None:
    """Names the free dimensions in place, as ``free`` says by input and axis."""
    shapes = {tensor.name: tensor.type.tensor_type.shape.dim for tensor in model.graph.input}
    names = {shapes[key][axis].dim_param: name for key, axes in free.items() for axis, name in axes.items()}
    for tensor in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in tensor.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = names.get(dimension.dim_param, dimension.dim_param)
