"""Which server is replaced in which wave?

May import: preflight, vllm.
Pure.
"""
