# SPDX-License-Identifier: Apache-2.0
"""Is a node fit, and is the inventory sound?

May import: common, container, host, models, vllm.
Pure but for: node, role_specs.
"""
