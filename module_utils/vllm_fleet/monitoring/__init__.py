# SPDX-License-Identifier: Apache-2.0
"""What does a machine of the fleet say of itself to Prometheus?

May import: common, container, host, server, vllm.
Pure but for: main, resident, records, sources.
"""
