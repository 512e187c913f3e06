"""A trained student as a file: safetensors and ONNX."""
