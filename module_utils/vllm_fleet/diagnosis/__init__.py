"""Why did a server fail?

May import: vllm.
Pure.
"""
