"""Conversion of checkpoints: stock transformers architectures to and from ours, and ONNX."""
