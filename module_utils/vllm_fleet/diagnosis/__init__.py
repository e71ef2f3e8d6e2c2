# SPDX-License-Identifier: Apache-2.0
"""Why did a server fail?

May import: common, vllm.
Pure.
"""
