# SPDX-License-Identifier: Apache-2.0
"""Where one server's watchdog keeps what: settings, the present state, events. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SETTINGS = "/etc/vllm-fleet/watchdog"
RUN = "/run/vllm-fleet"


@dataclass(frozen=True)
class Places:
    """Folders of the node; the defaults are those of the role."""

    name: str
    settings_dir: str = SETTINGS
    run_dir: str = RUN
    sysfs: str = "/sys"
    kernel_log: str = "/dev/kmsg"

    @property
    def settings(self) -> Path:
        """What the watchdog is to do."""
        return Path(self.settings_dir) / f"{self.name}.json"

    @property
    def run(self) -> Path:
        """What is forgotten with a boot."""
        return Path(self.run_dir) / self.name

    @property
    def state(self) -> Path:
        """What the watchdog thinks of the server now."""
        return self.run / "watchdog.json"

    @property
    def gpus(self) -> Path:
        """The GPUs that were seen since the boot, of all servers of the node."""
        return Path(self.run_dir) / "gpus.json"

    @property
    def rollout(self) -> Path:
        """A rollout's note that it has drained the server."""
        return self.run / "rollout"

    @property
    def result(self) -> Path:
        """What became of the latest restart."""
        return self.run / "restart.json"
