# SPDX-License-Identifier: Apache-2.0
"""The controller's half of a server over several nodes: one node's process brings its node through, with the others.

Every node checks; all stop before one starts; all are watched at once; one verdict; and back they go together. Standard
library alone: the action plugin `vllm_server` uses it on the controller.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..common.failure import Failure, FailureClass
from ..vllm import ranks as replicas
from . import agreement, blame, live
from .rendezvous import INTERVAL, Lost, Rendezvous

Answer = dict[str, Any]
#: Calls a module on the node: (module, arguments) to its answer.
Call = Callable[[str, dict[str, Any]], Answer]

#: Seconds that a partner may take to come to the same task. In a linear play all start it at once.
ARRIVAL = 120.0
#: Seconds that the node whose rank was lost has to say why: at once, but on a machine that has other things to do.
CAUSE = 30.0
#: Slices in the time after which a start that shows no sign of life counts as stalled.
SLICES = 4
#: What to do where a node refused, where a host is gone, and where hosts ask for different servers.
MEND_NODE = "Mend that node, then run again"
MEND_HOST = "Mend that host, then run again"
MEND_VARIABLES = "All hosts of one replica serve the same: correct their variables; nothing was touched"
#: Seconds that workers of a replica in which nothing changes give its head to confirm that it is ready.
CONFIRM = 5.0


class ReplicaRun:
    """One node's run.

    ``call`` calls a module there, ``wake`` makes a watch on the node return at once, ``look`` returns what that watch
    has found so far (``progress`` of an answer, None when there is nothing).
    """

    def __init__(
        self,
        replica: Mapping[str, Any],
        host: str,
        folder: Path,
        *,
        call: Call,
        show: Callable[[Answer, bool], None],
        say: Callable[[str], None],
        wake: Callable[[str], None],
        look: Callable[[str], Answer | None],
        check_mode: bool,
        options: Mapping[str, Any],
    ) -> None:
        """Remember everything; nothing happens yet."""
        self.replica, self.host, self.options, self.check_mode = replica, host, options, check_mode
        self.call, self.show, self.say, self.wake, self.look = call, show, say, wake, look
        self.meeting = Rendezvous(folder, str(replica["name"]), host, replica["hosts"])
        self.is_head = host == replica["head"]
        self.nonce = secrets.token_hex(8)
        self.name = str(options.get("name", "vllm"))
        self.begun = time.monotonic()
        self.because = ""
        self.refusal: tuple[str, Answer] | None = None

    def run(self) -> Answer:
        """Do it, and leave with a word, whatever happens."""
        why = "dropped out of the run"
        try:
            answer = self._run()
            why = f"has ended: {answer.get('msg') or 'done'}"
        except Lost as lost:
            why = f"has ended: {lost}"
            answer = self._refused(f"{lost}", MEND_HOST)
        finally:
            self.meeting.leave(why)
        return answer

    def _run(self) -> Answer:
        self.meeting.publish("same", self._same())
        different = agreement.differing(self.meeting.gather("same", arrival=ARRIVAL), self.replica["hosts"])
        if different:
            return self._refused(different, MEND_VARIABLES, FailureClass.BAD_ARGUMENT)
        answer = self._step("check")
        checked = self._agree("checked", answer)
        if isinstance(checked, str):
            return answer if answer.get("failed") else self._refused_by_partner(checked)
        together = replicas.together({h: c["actions"] for h, c in checked.items()})
        if any(together and not agreement.starts(c["actions"], together) for c in checked.values()):
            if not agreement.starts(answer["actions"], together):
                answer = self._step("check", together=together)
            again = self._agree("checked again", answer)
            if isinstance(again, str):
                return answer if answer.get("failed") else self._refused_by_partner(again)
        if together:
            refused = self._check_network()
            if refused:
                return refused
        if self.check_mode:
            return answer
        replaced = any("rename" in c["actions"] for c in checked.values())
        return (self._try(together) if replaced else None) or self._change(answer, together)

    # -- before ------------------------------------------------------------------------------------------------

    def _same(self) -> dict[str, Any]:
        """What all nodes of a replica must have in common."""
        options = self.options
        own = {"node-rank", "headless"}
        args = {k: v for k, v in (options.get("args") or {}).items() if k not in own}
        keys = ("model", "revision", "image", "accelerator", "state")
        return {**{k: options.get(k) for k in keys}, **{f"args {k}": v for k, v in args.items()}}

    def _agree(self, topic: str, answer: Answer) -> dict[str, Any] | str:
        """Publish how a check went, return what all published; a sentence naming the node that refused, if one did."""
        checked = {"actions": answer.get("actions") or [], "failure": answer.get("failure")}
        if answer.get("failed") or answer.get("unreachable"):
            checked["msg"] = str(answer.get("msg") or "it cannot be reached")
        self.meeting.publish(topic, checked)
        everyone = self.meeting.gather(topic)
        self.refusal = next(((h, t) for h, t in everyone.items() if "msg" in t), None)
        return f"{self.refusal[0]} cannot: {self.refusal[1]['msg']}" if self.refusal else everyone

    def _check_network(self) -> Answer | None:
        """Let all listen, then all connect; the answer to fail with if it does not work."""
        r = self.replica
        ports = [r["master_port"], r["guard_port"]] if self.is_head else []
        partners = [{"host": h} for h in self.meeting.partners]
        common = {
            "address": r["address"],
            "interface": r["interface"],
            "container": self.name,
            "sysfs_root": self.options.get("sysfs_root", "/sys"),
            "reported_host": self.host,
        }
        if self.options.get("docker_host"):
            common["docker_host"] = self.options["docker_host"]
        rdma = {"rdma_devices": r["rdma_devices"], "rdma_gid_index": r["rdma_gid_index"]}
        own = {k: v for k, v in rdma.items() if v not in (None, "")}
        listening = self.call(
            "vllm_replica_network",
            {
                **common,
                **own,
                "step": "listen",
                "ports": ports,
                "ports_address": r["master_addr"],
                "partners": partners,
            },
        )
        self.meeting.publish("offered", {k: listening.get(k) for k in ("offered", "word")})
        agreed = self._agree("listening", listening)
        if isinstance(agreed, str):
            return self._failed_check(listening, agreed)
        offered = self.meeting.gather("offered")
        others = [{"host": h, "address": r["addresses"][h], **offered[h]} for h in self.meeting.partners]
        connected = self.call("vllm_replica_network", {**common, "step": "connect", "partners": others})
        agreed = self._agree("connected", connected)
        return self._failed_check(connected, agreed) if isinstance(agreed, str) else None

    def _try(self, together: str) -> Answer | None:
        """Let Docker check the new containers of all nodes; the answer to fail with if one is refused.

        The nodes stop one after the other: what Docker refuses on the last is to be known before the first one stops.
        """
        answer = self._step("try", together=together)
        agreed = self._agree("tried", answer)
        if not isinstance(agreed, str):
            return None
        return answer if answer.get("failed") else self._refused_by_partner(agreed)

    def _failed_check(self, answer: Answer, agreed: str) -> Answer:
        """Fail with the node's own words where it has some."""
        own = answer.get("failed") or answer.get("unreachable")
        shape = self._refused(str(answer.get("msg")))
        if own:
            failure = answer.get("failure") or shape["failure"]
            return {**shape, "msg": answer.get("msg"), "failure": failure}
        return self._refused_by_partner(agreed)

    # -- the change --------------------------------------------------------------------------------------------

    def _change(self, answer: Answer, together: str) -> Answer:
        token = None
        if answer.get("actions"):
            self._after_the_head()
            held = self._step("hold", together=together)
            token = held.get("token")
            if held.get("failure") or held.get("failed") or held.get("unreachable"):
                return self._down(held, token)
            answer = held
        self.meeting.publish("held", True)
        try:
            self.meeting.gather("held", until=lambda: bool(self._bad()))
        except Lost as lost:
            return self._down(answer, token, lost)
        if self._bad():
            return self._down(answer, token)
        if token is None and not self.is_head and self._head_confirms():
            return self._all_ready(answer, token)
        return self._watch(answer, token, "verdict")

    def _after_the_head(self) -> None:
        """Let the head stop first: it has requests to finish, and cannot without its workers."""
        with contextlib.suppress(Lost):
            self.meeting.gather("held", until=lambda: self._bad() or self._head_is_held())

    def _head_is_held(self) -> bool:
        return self.is_head or self.meeting.read(str(self.replica["head"]), "held") is not None

    def _head_confirms(self) -> bool:
        """Let the head of an unchanged replica say in peace that it is ready: then no node need be watched."""
        end = time.monotonic() + CONFIRM
        while time.monotonic() < end and not self._bad():
            if self._head_is("verdict", "ready"):
                return True
            time.sleep(live.LISTEN)
        return False

    def _watch(self, answer: Answer, token: Any, topic: str) -> Answer:
        """Slices until this node's verdict or the others'."""
        step = "go"
        while True:
            began = time.monotonic()
            shown = live.Shown(self.show)
            with live.Listener(partial(self._news, topic), partial(self.wake, self.nonce), partial(self._look, shown)):
                answer = self._step(step, token=token, slice_=self._slice(), idle=self._partners_idle())
            token = answer.get("token") or token
            idle = (answer.get("progress") or {}).get("idle")
            if idle is not None:
                self.meeting.publish("active", time.monotonic() - float(idle))
            shown.last(answer, quiet=time.monotonic() - began > self._slice() / 2)
            if (answer.get("progress") or {}).get("alarmed") and not answer.get("failure"):
                self._await_cause(topic)
            if topic == "back":
                if not answer.get("pending"):  # the head, or a server without workers, for better or worse
                    return self._is_back(answer)
                if self._bad(topic):
                    return self._not_back(answer)
            elif answer.get("failure") or answer.get("failed") or answer.get("unreachable"):
                return self._down(answer, token)
            elif self._bad():
                # This rank may have failed first, and not have ended yet: what it failed of is in its log.
                answer = self._step("why", token=token, ended=self._partner_ended())
                return self._down(answer, answer.get("token") or token)
            elif not answer.get("pending"):
                return self._all_ready(answer, token)
            if self._head_is(topic, "ready"):
                return self._follow(token, topic)

    def _look(self, shown: live.Shown) -> None:
        shown.more(self.look(self.nonce))

    def _await_cause(self, topic: str) -> None:
        """Let the node whose rank was lost say why, before this one judges what became of its own."""
        end = time.monotonic() + CAUSE
        while time.monotonic() < end and not self._bad(topic):
            time.sleep(INTERVAL)

    def _slice(self) -> float:
        """Seconds of one call: short enough that a node hears of its partners before it takes itself for stalled."""
        return min(float(self.options["watch_slice"]), float(self.options.get("stall_timeout") or 900.0) / SLICES)

    def _partners_idle(self) -> float | None:
        """Seconds since a partner last showed a sign of life: none stalls while another gets on."""
        active = [at for host, at in self.meeting.published("active").items() if host != self.host]
        return max(0.0, time.monotonic() - max(active)) if active else None

    def _follow(self, token: Any, topic: str) -> Answer:
        """The head is ready: so is this worker, if it still runs."""
        answer = self._step("ready", token=token, age=time.monotonic() - self.begun)
        if topic == "back":
            return self._is_back(answer)
        if answer.get("failed") or answer.get("failure") or answer.get("pending"):
            return self._down(answer, answer.get("token") or token)
        return self._all_ready(answer, token)

    def _is_back(self, answer: Answer) -> Answer:
        """Publish how the way back ended; the answer fails all the same where it followed a failure."""
        if answer.get("pending") or (answer.get("failed") and not answer.get("rolled_back")):
            return self._not_back(answer)
        self.meeting.publish("back", {"ready": True})
        return answer

    def _all_ready(self, answer: Answer, token: Any) -> Answer:
        """Wait for the last word of all: a worker may have died while the head said that it is ready."""
        if self.meeting.read(self.host, "verdict") is None:
            self.meeting.publish("verdict", {"ready": True})
        try:
            self.meeting.gather("verdict", until=lambda: bool(self._bad()))
        except Lost as lost:
            return self._down(answer, token, lost)
        return self._down(answer, token) if self._bad() else answer

    # -- down, and back ----------------------------------------------------------------------------------------

    def _down(self, answer: Answer, token: Any, lost: Lost | None = None) -> Answer:
        """Publish the own failure, wait for all verdicts, and go back with the others."""
        own = answer.get("failure")
        if lost is not None:
            self.meeting.publish("verdict", {"ready": False})
        elif own or answer.get("failed") or answer.get("unreachable"):
            msg = str(answer.get("msg") or "")
            failure = own or Failure(FailureClass.UNKNOWN, msg).as_result()
            self.meeting.publish("verdict", {"failure": failure, "msg": msg})
            if failure.get("class") not in blame.CONSEQUENCES:
                self._tell(failure)
        else:
            self.meeting.publish("verdict", {"ready": False})
        try:
            everyone = self.meeting.gather("verdict")
        except Lost as gone:
            everyone, lost = self.meeting.published("verdict"), lost or gone
        failed = [(h, v) for h, v in everyone.items() if v and v.get("failure")]
        failures = [(h, {**v["failure"], "msg": v.get("msg", "")}) for h, v in failed]
        blamed = blame.culprit(failures)
        if blamed is None:
            what = str(lost) if lost else "a partner gave up"
            blamed = ("", {**Failure(FailureClass.UNKNOWN, what, remedy="Run again").as_result(), "msg": what})
        culprit, failure = blamed[0], dict(blamed[1])
        if culprit == self.host and failure.get("class") in blame.CONSEQUENCES:
            self._tell(failure)
        failure.pop("lost", None)
        because = str(failure.pop("msg"))
        if culprit != self.host:
            name = self.replica["name"]
            because = f"{self.host}, container {self.name}: the start of replica {name} failed. {because}"
        failure["host"] = culprit
        self.because = because
        if token is None:
            return {**answer, "failed": True, "msg": because, "failure": failure, "rolled_back": False}
        back = self._step("give_up", token=token, failure=failure, because=because)
        self.meeting.publish("back held", bool(back.get("pending")))
        try:
            returning = self.meeting.gather("back held")
        except Lost:
            returning = self.meeting.published("back held")
        if not back.get("pending"):
            self.meeting.publish("back", {"ready": False})
            return back
        if not returning.get(self.replica["head"]) and not self.is_head:
            # Without its head this worker would wait for ever. It is started all the same, for when the head is mended.
            return self._not_back(self._step("go", token=back["token"], slice_=1.0))
        return self._watch(back, back["token"], "back")

    def _tell(self, failure: Mapping[str, Any]) -> None:
        """Print what ends the start of all: going back takes a while."""
        cause = str(failure.get("cause") or "").rstrip(".")
        self.say(f"[{self.host}] failed, {failure.get('class')}: {cause}; all nodes of {self.replica['name']} go back")

    def _not_back(self, answer: Answer) -> Answer:
        self.meeting.publish("back", {"failure": {"class": FailureClass.UNKNOWN.value}})
        msg = str(answer.get("msg") or self.because)
        if "not become ready" not in msg:
            msg = f"{msg} The previous server was put back but did not become ready on all nodes of the replica."
        return {**answer, "failed": True, "rolled_back": False, "msg": msg}

    # -- what partners say -------------------------------------------------------------------------------------

    def _bad(self, topic: str = "verdict") -> bool:
        """Whether a partner failed or is gone."""
        verdicts = self.meeting.published(topic)
        if any(v and ("failure" in v or v.get("ready") is False) for h, v in verdicts.items() if h != self.host):
            return True
        return any(self.meeting.lost(h, topic) for h in self.meeting.partners)

    def _partner_ended(self) -> bool:
        """Whether a partner's server failed by ending: then it has an exit code."""
        failures = [(v or {}).get("failure") or {} for v in self.meeting.published("verdict").values()]
        return any(failure.get("exit_code") is not None for failure in failures)

    def _head_is(self, topic: str, word: str) -> bool:
        verdict = self.meeting.read(str(self.replica["head"]), topic)
        return bool(verdict and verdict.get(word))

    def _news(self, topic: str) -> bool:
        return self._bad(topic) or (not self.is_head and self._head_is(topic, "ready"))

    # -- the node ----------------------------------------------------------------------------------------------

    def _step(self, name: str, *, token: Any = None, slice_: float | None = None, **more: Any) -> Answer:
        step = {"name": name, "wake": self.nonce, **more}
        args = {**self.options, "replica_step": step}
        if token:
            args["watch_token"] = token
        if slice_:
            args["watch_slice"] = slice_
        return self.call("vllm_server", args)

    def _refused_by_partner(self, why: str) -> Answer:
        answer = self._refused(f"nothing was touched, because {why}")
        if self.refusal and self.refusal[1].get("failure"):
            answer["failure"] = {**self.refusal[1]["failure"], "host": self.refusal[0]}
        answer["msg"] = f"{self.host}, container {self.name}: nothing was touched, because {why}"
        return answer

    def _refused(
        self, cause: str, remedy: str = MEND_NODE, failure_class: FailureClass = FailureClass.UNKNOWN
    ) -> Answer:
        """An answer of the module's shape for what never got to the node."""
        failure = Failure(failure_class, cause, remedy=remedy)
        return {
            "failed": True,
            "changed": False,
            "actions": [],
            "differences": [],
            "diff": {},
            "container": None,
            "stages": [],
            "log_file": None,
            "notes": [],
            "rolled_back": False,
            "confirmed": False,
            "failure": failure.as_result(),
            "msg": failure.sentence(f"{self.host}, container {self.name}: replica {self.replica['name']}"),
        }
