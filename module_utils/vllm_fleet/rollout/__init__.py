# SPDX-License-Identifier: Apache-2.0
"""Which server is replaced in which wave, and what does it go back to?

May import: common, gateway, preflight, vllm.
Pure.
"""
