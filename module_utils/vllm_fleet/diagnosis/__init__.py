"""Why did a server fail?

May import: common, vllm.
Pure.
"""
