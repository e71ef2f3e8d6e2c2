"""What does one run do to one server on one node?

May import: common, container, diagnosis, host, models, vllm, weights.
Pure but for: endpoint, gpu_gate, lifecycle, observe, preconditions, release_store, state, watch.
"""
