"""Engines that compile a model for one device: TensorRT and TensorRT for RTX."""
