# SPDX-License-Identifier: Apache-2.0
"""What is in HAProxy, and what should be?

May import: common, vllm.
Pure but for: certificate, door, drain, haproxy, vip_state.
"""
