"""Tests on a pretended GPU: device "cuda" on a machine without one, computed by the CPU.

Devices, dtypes, the loss scaler, checkpoints, memory that runs out and bitsandbytes' choice of
kernels are a GPU's; speed, rounding, streams and fragmentation are not. tests/test_pretended_gpu.py
runs these tests, in a process for each card: device.py must come before torch.
"""
