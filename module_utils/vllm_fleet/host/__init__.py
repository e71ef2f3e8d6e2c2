# SPDX-License-Identifier: Apache-2.0
"""What does a node have? GPUs, memory, ports, kernel.

May import: common, container, weights.
Pure but for: place, ports, probe, rocm.
"""
