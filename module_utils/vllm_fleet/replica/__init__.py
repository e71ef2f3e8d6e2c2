# SPDX-License-Identifier: Apache-2.0
"""What does one run do to one server over several nodes?

May import: common, container, host, server, vllm.
Pure but for: controller, guard, live, network, rank_lifecycle, rendezvous.
"""
