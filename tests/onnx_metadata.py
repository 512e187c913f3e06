"""ONNX files that say other things of themselves, for tests of what reads them."""

from pathlib import Path

import onnx


def with_metadata(file: Path, path: Path, **entries: str | None) -> Path:
    """Writes ``file`` with other entries in its metadata to ``path``, and returns it; None removes an entry."""
    model = onnx.load(file)
    said = {entry.key: entry.value for entry in model.metadata_props} | entries
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {key: value for key, value in said.items() if value is not None})
    onnx.save(model, path)
    return path
