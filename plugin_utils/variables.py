# SPDX-License-Identifier: Apache-2.0
"""A host's variables as Python reads them: each is worked out when it is asked for, and once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ansible.errors import AnsibleUndefinedVariable


class Variables(Mapping[str, Any]):
    """Variables by name, with values instead of templates.

    Jinja works out every variable that an expression names, on whichever branch, each time anew, and compiles its
    template for it. Here only what is read costs anything, and what is made of it finds it worked out.
    """

    def __init__(self, templar: Any, raw: Mapping[str, Any]) -> None:
        """Take the variables of a task, and the templar of the plugin that has them."""
        self._known = dict(raw)
        self._plain: set[str] = set()
        self._templar = templar.copy_with_new_env(available_variables=self._known)

    def __getitem__(self, name: str) -> Any:
        """Return a value; raises KeyError without such a variable, and Ansible's errors of templates."""
        if name not in self._plain:
            self.note(name, self._templar.template(self._known[name]))
        return self._known[name]

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a variable, whatever it is worth."""
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self._known)

    def __len__(self) -> int:
        """Count the variables."""
        return len(self._known)

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or ``default`` where it is not defined or leans on something that is not, as in Jinja."""
        try:
            return self[name]
        except (KeyError, AnsibleUndefinedVariable):
            return default

    def raw(self, name: str) -> Any:
        """Return a variable as it is: of those that Ansible makes itself, such as hostvars, nothing is a template."""
        return self._known[name]

    def note(self, name: str, value: Any) -> None:
        """Take ``value`` for a variable from now on, also in what is made of it and has not been read yet."""
        self._known[name] = value
        self._plain.add(name)
