# SPDX-License-Identifier: Apache-2.0
"""Logic of vllm-fleet's modules, below Ansible and (but for engine.py) below Docker."""
