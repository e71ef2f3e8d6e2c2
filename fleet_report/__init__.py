# SPDX-License-Identifier: Apache-2.0
"""What the controller makes of a run: events in, figures, a table for the terminal and a page out."""
