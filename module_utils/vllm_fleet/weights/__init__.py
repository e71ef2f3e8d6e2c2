# SPDX-License-Identifier: Apache-2.0
"""Is a model's snapshot there, and how does it get there?

May import: common.
Pure but for: fetch, fetch_apply, fetch_plan, fetch_source, files, hub, prewarm, snapshot_call, swarm.
"""
