#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""The certificate of a gateway, in its file and in the running HAProxy."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gateway_certificate
short_description: Change the certificate of a running gateway
version_added: "0.1.0"
description:
  - Checks that a certificate and its key belong together and are valid today, and has the running HAProxy take them. HAProxy
    is not reloaded, and no connection ends.
options:
  path:
    description:
      - The PEM file with certificate, chain and key.
    type: path
    required: true
  content:
    description:
      - What the file is to hold. Without it the file is taken as it is, as after a renewal on the host.
      - Not shown in any output.
    type: str
  socket:
    description:
      - HAProxy's runtime socket. Without it the file alone is written, for a reload that follows.
    type: path
attributes:
  check_mode:
    support: full
    description: Says what would be changed, and fails for a certificate that cannot serve.
  diff_mode:
    support: full
    description: Fingerprint and end of the certificates.
  idempotent:
    support: full
    description: Changed only where HAProxy or the file had something else.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: Take a certificate that was renewed on the host
  gateway_certificate:
    path: /etc/haproxy/gateway.pem
    socket: /run/haproxy/vllm-fleet.sock
"""

RETURN = r"""
differs:
  description: Whether HAProxy or the file had something else, for a task that only looks.
  returned: success
  type: bool
ends:
  description: Until when the certificate is valid.
  returned: success
  type: str
  sample: Nov 29 07:00:00 2027 GMT
days_left:
  description: Whole days until then.
  returned: success
  type: int
names:
  description: Names and addresses that it is for.
  returned: success
  type: list
  elements: str
msg:
  description: Why it cannot serve, or why HAProxy did not take it.
  returned: on failure
  type: str
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common import durable
from ansible.module_utils.vllm_fleet.gateway import certificate
from ansible.module_utils.vllm_fleet.gateway.haproxy import SocketError


def write(module: AnsibleModule, path: Path, text: str) -> Path:
    """Write a file that root alone can read."""
    path.touch(mode=0o600)
    path.write_text(text, encoding="ascii")
    return path


def main() -> None:
    """Prove it, give it to HAProxy, then write it down: a run that is killed between finds the file differing."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "no_log": True},
            "socket": {"type": "path"},
        },
        supports_check_mode=True,
    )
    asked = module.params
    path, text, socket = Path(asked["path"]), asked["content"], asked["socket"]
    proof = path
    try:
        if text:
            proof = write(module, Path(module.tmpdir, path.name), text)
        wanted = certificate.examine(str(proof))
        text = text or path.read_text(encoding="ascii")
        filed = path.exists() and path.read_text(encoding="utf-8", errors="replace") == text
        has = certificate.live(socket, str(path)) if socket else {}
        known = not has or has["fingerprint"] == wanted.fingerprint
        if not module.check_mode:
            if has and not (known and filed):
                certificate.replace(socket, str(path), text)
            if not filed:
                durable.write(path, text.encode("ascii"))
    except certificate.CertificateError as error:
        what = f"gateway_certificate_pem, for {path}," if asked["content"] else str(path)
        module.fail_json(
            msg=f"The gateway's certificate: {what} {error}. Expected certificate, chain and unencrypted key in one PEM file, "
            "valid today. The gateway was not changed."
        )
    except SocketError as error:
        module.fail_json(msg=f"HAProxy {error}. See systemctl status haproxy there.")
    except (OSError, UnicodeError) as error:
        module.fail_json(msg=f"{path} cannot be changed: {getattr(error, 'strerror', None) or 'it is no PEM file'}.")
    said = f"{wanted.fingerprint}, valid until {wanted.ends}\n"
    module.exit_json(
        changed=not (known and filed),
        differs=not (known and filed),
        ends=wanted.ends,
        days_left=wanted.days_left,
        names=list(wanted.names),
        diff={
            "before": said
            if known and filed
            else "".join(f"{has['fingerprint']}, valid until {has['ends']}\n" for _ in has and [0]),
            "after": said,
            "after_header": "certificate of the gateway",
        },
    )


if __name__ == "__main__":
    main()
