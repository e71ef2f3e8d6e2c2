# SPDX-License-Identifier: Apache-2.0
"""Does a server still work between two runs, and what is to be done when it does not?

May import: common, container, host, server, vllm.
Pure but for: agent, ask, evidence, gpus, install, journal, main, others, repair, resident, restart.
"""
