# SPDX-License-Identifier: Apache-2.0
"""What is in Docker, and what is the desired container?

May import: common, vllm, weights.
Pure but for: api, dockerd, engine, find_image, log_lines.
"""
