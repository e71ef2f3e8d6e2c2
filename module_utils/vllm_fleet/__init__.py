# SPDX-License-Identifier: Apache-2.0
"""Logic of vllm-fleet's modules, below Ansible and (but for engine.py) below Docker."""

from __future__ import annotations

from .common import zipped

zipped.install(__name__)
