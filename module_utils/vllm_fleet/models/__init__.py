# SPDX-License-Identifier: Apache-2.0
"""What does a model take, and what fits on a machine?

May import: common, host, vllm, weights.
Pure but for: adapter_files, hub_files.
"""
