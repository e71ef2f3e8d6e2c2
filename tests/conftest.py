"""Makes module_utils and library importable the way Ansible imports them on a node."""

import sys
from pathlib import Path

import ansible.module_utils

ROOT = Path(__file__).resolve().parent.parent
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
sys.path.insert(0, str(ROOT / "library"))
sys.path.insert(0, str(ROOT))
# Helpers that tests of one folder lend to those of another: the stand-in, the test fleet, made-up caches.
for folder in ("integration", "fleet", "sysfs", ""):
    sys.path.insert(0, str(ROOT / "tests" / folder))
