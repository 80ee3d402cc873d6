"""A run's scores and maps as one file for other programs: StableHLO or ONNX."""
