# SPDX-License-Identifier: Apache-2.0
"""What does every package need that no domain owns? Units, findings, refusals, jobs, retries.

May import: nothing.
Pure but for: detached, exchange, job, retry.
"""
