# SPDX-License-Identifier: Apache-2.0
"""What does one run do to one server on one node?

May import: common, container, diagnosis, host, models, vllm, weights.
Pure but for: change, checks, gpu_gate, lifecycle, measured, observe, preconditions, recover, release_info,
release_store, result, run, sharing, state, watch, watched.
"""
