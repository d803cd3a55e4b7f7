"""Fused GPU kernels, one per file, without policy: ``vsvsr.ops`` decides when they run."""
