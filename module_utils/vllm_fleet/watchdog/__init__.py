# SPDX-License-Identifier: Apache-2.0
"""Does a server still work between two runs, and what is to be done when it does not?

May import: common, container, server, vllm.
Pure but for: agent, ask, evidence, journal, main, others, resident, restart.
"""
