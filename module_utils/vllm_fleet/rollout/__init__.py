# SPDX-License-Identifier: Apache-2.0
"""Which server is replaced in which wave?

May import: preflight, vllm.
Pure.
"""
