# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a vLLM server: what it looks like from outside, without a model."""

VERSION = "0.32.0"
