# SPDX-License-Identifier: Apache-2.0
"""What does vLLM accept, and what does it print? All that a release of vLLM can break.

May import: common.
Pure but for: chat, chat_wire, measure, motion, readiness.
"""
