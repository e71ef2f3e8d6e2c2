#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Ask a vLLM server and check what it answers."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: vllm_chat
short_description: Ask a vLLM server and check what it answers
version_added: "0.1.0"
description:
  - Sends one or several requests to an OpenAI-compatible server and checks the answers, their counts and their timing.
  - A server can answer with HTTP 200, a finish reason and fluent text and still be wrong, for example when weights are
    read in a data type that the machine computes badly. O(expect.pattern) finds that; a health check cannot.
  - The requests are sent from where the task runs. On the node they use the published port, on the controller the network or a gateway.
options:
  url:
    description:
      - Root of the server. A closing C(/v1) is allowed.
    type: str
    default: http://127.0.0.1:8000
  model:
    description:
      - Name to ask for, one of those the server was given as C(--served-model-name).
      - When empty, the first one that C(/v1/models) lists.
    type: str
    default: ""
  api:
    description:
      - V(chat) asks C(/v1/chat/completions), V(completions) asks C(/v1/completions), V(embeddings) asks C(/v1/embeddings),
        V(rerank) asks C(/v1/rerank).
    type: str
    choices: [chat, completions, embeddings, rerank]
    default: chat
  messages:
    description:
      - The conversation, for O(api=chat). Each message has C(role) and C(content).
    type: list
    elements: dict
  prompt:
    description:
      - The text to complete; with O(api=chat) it is sent as a message of the user.
    type: str
  image:
    description:
      - Colour of a picture that is drawn by the module, a square, and sent before O(prompt). For vision models with O(api=chat).
    type: str
    choices: ["", red, green, blue]
    default: ""
  query:
    description:
      - The text to compare with O(documents), for O(api=embeddings) and O(api=rerank).
    type: str
    default: ""
  documents:
    description:
      - Texts of which a reranker scores each, and an embedding model makes a vector each.
    type: list
    elements: str
    default: []
  max_tokens:
    description:
      - Most tokens to generate.
    type: int
    default: 128
  temperature:
    description:
      - Sampling temperature. At V(0) the same server gives the same answer, as a check needs it.
    type: float
    default: 0.0
  stream:
    description:
      - Whether to stream the answer. The time to the first token can be measured only with a stream.
    type: bool
    default: true
  api_key:
    description:
      - Key of the server, sent as bearer token.
    type: str
    default: ""
  timeout:
    description:
      - Seconds for a whole request, its answer included. Connecting has at most 10 of them.
    type: float
    default: 120.0
  expect:
    description:
      - What the answer must be like.
    type: dict
    suboptions:
      pattern:
        description:
          - Regular expression (Python) to be found in the content, with the case as given.
        type: str
        default: ""
      min_chars:
        description:
          - Least number of characters, leading and trailing white space not counted.
        type: int
        default: 1
      finish_reason:
        description:
          - Allowed finish reasons. V(length) means that O(max_tokens) cut the answer.
        type: list
        elements: str
        default: [stop, length, tool_calls]
      headers:
        description:
          - Headers that the response must have, by name in any case, and their values.
        type: dict
        default: {}
      first:
        description:
          - Which of O(documents) must be the nearest to O(query), counted from 1. Of vectors that is the one of the largest cosine; V(0) asks for none.
        type: int
        default: 0
  max_ttft:
    description:
      - Most seconds from sending the request to the first token. Needs O(stream=true).
    type: float
  min_tokens_per_second:
    description:
      - Least rate of generation of this one request, from its first token to its last.
    type: float
  endpoints:
    description:
      - Paths that must answer a GET with status 200 besides, for example C(/docs).
      - C(/v1/models) must also list the model.
    type: list
    elements: str
    default: []
  listed:
    description: Further names that C(/v1/models) must list, those of LoRA adapters.
    type: list
    elements: str
    default: []
  headers:
    description:
      - Additional headers by name, for example for a gateway. Put the key into O(api_key).
    type: dict
    default: {}
  requests:
    description:
      - Several requests in one task, sent one after the other. Each takes the options of this module; what it does not
        give, it takes from the task.
      - After a request that shows the server cannot be reached, the rest is not sent.
    type: list
    elements: dict
    suboptions:
      name:
        description: What the request is called in messages and results.
        type: str
      url:
        description: See O(url).
        type: str
      model:
        description: See O(model).
        type: str
      api:
        description: See O(api).
        type: str
        choices: [chat, completions, embeddings, rerank]
      messages:
        description: See O(messages).
        type: list
        elements: dict
      prompt:
        description: See O(prompt).
        type: str
      image:
        description: See O(image).
        type: str
        choices: ["", red, green, blue]
      query:
        description: See O(query).
        type: str
      documents:
        description: See O(documents).
        type: list
        elements: str
      max_tokens:
        description: See O(max_tokens).
        type: int
      temperature:
        description: See O(temperature).
        type: float
      stream:
        description: See O(stream).
        type: bool
      api_key:
        description: See O(api_key).
        type: str
      timeout:
        description: See O(timeout).
        type: float
      expect:
        description: See O(expect). Taken as a whole, not merged with the task's.
        type: dict
        suboptions:
          pattern:
            description: See O(expect.pattern).
            type: str
            default: ""
          min_chars:
            description: See O(expect.min_chars).
            type: int
            default: 1
          finish_reason:
            description: See O(expect.finish_reason).
            type: list
            elements: str
            default: [stop, length, tool_calls]
          headers:
            description: See O(expect.headers).
            type: dict
            default: {}
          first:
            description: See O(expect.first).
            type: int
            default: 0
      max_ttft:
        description: See O(max_ttft).
        type: float
      min_tokens_per_second:
        description: See O(min_tokens_per_second).
        type: float
      endpoints:
        description: See O(endpoints). Not taken from the task, where they are asked once, with the first request.
        type: list
        elements: str
      listed:
        description: See O(listed). Not taken from the task, where they are looked for once, with the first request.
        type: list
        elements: str
      headers:
        description: See O(headers).
        type: dict
  use_cached_result:
    description:
      - Whether to use the result of an earlier probe in the same run, if it had the same options and found nothing to do. For a first look only. Used
        by the action plugin.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: The requests are sent in check mode too; they change nothing but the server's counters.
  diff_mode:
    support: none
    description: There is nothing to compare, the module never reports a change.
  idempotent:
    support: full
    description: Never changed.
notes:
  - Needs nothing on the node but Python. The environment's proxies are not used.
author:
  - The vllm-fleet authors
"""

EXAMPLES = r"""
- name: The server knows the capital of France
  vllm_chat:
    url: http://127.0.0.1:8000
    model: deepseek-ai/DeepSeek-V3.1
    prompt: What is the capital of France?
    max_tokens: 64
    expect:
      pattern: Paris
  register: reply

- name: Show the reply
  ansible.builtin.debug:
    msg: "{{ reply.content }} ({{ reply.ttft | round(2) }} s to the first token)"

- name: A whole verification in one task
  vllm_chat:
    url: http://127.0.0.1:8000
    api_key: "{{ vllm_server_api_key }}"
    endpoints: [/docs, /v1/models]
    requests:
      - name: capital
        prompt: What is the capital of France?
        expect: {pattern: Paris}
      - name: poem
        messages:
          - {role: system, content: You are a poet.}
          - {role: user, content: Write a poem about the stars.}
        expect: {min_chars: 40}
        max_ttft: 5
        min_tokens_per_second: 10
      - name: completions
        api: completions
        prompt: The capital of France is
        stream: false
        expect: {pattern: Paris}

- name: An embedding model finds the nearest text
  vllm_chat:
    url: http://127.0.0.1:8000
    api: embeddings
    query: What is the capital of France?
    documents: [Bread is baked from flour and water., Paris is the capital of France.]
    expect: {first: 2}

- name: A vision model sees a colour
  vllm_chat:
    url: http://127.0.0.1:8000
    image: red
    prompt: Which colour is this picture? Answer with one word.
    expect: {pattern: '(?i)red'}
"""

RETURN = r"""
content:
  description: The answer's text. With O(requests), that of the first one.
  returned: when a request was sent
  type: str
  sample: The capital of France is Paris.
finish_reason:
  description: Why the answer ends, of the first request.
  returned: when a request was sent
  type: str
  sample: stop
model:
  description: The model that was asked, of the first request.
  returned: when a request was sent
  type: str
  sample: deepseek-ai/DeepSeek-V3.1
usage:
  description: The server's own counts, of the first request.
  returned: when a request was sent
  type: dict
  sample: {prompt_tokens: 13, completion_tokens: 8, total_tokens: 21}
ttft:
  description: Seconds from sending to the first token, of the first request; none without a stream.
  returned: when a request was sent
  type: float
  sample: 0.081
tokens_per_second:
  description:
    - Rate of generation, of the first request, from the first token to the last.
    - For an answer that came in one piece, its tokens over the whole time.
  returned: when a request was sent
  type: float
  sample: 41.7
elapsed:
  description: Seconds from sending to the end of the answer, all requests together.
  returned: when a request was sent
  type: float
  sample: 0.253
checks:
  description: Everything that was looked at, of all requests, in order.
  returned: when a request was sent
  type: list
  elements: dict
  contains:
    name:
      description: One of C(answer), C(status), C(model), C(finish_reason), C(usage), C(min_chars), C(pattern), C(vectors), C(first),
        C(max_ttft), C(min_tokens_per_second), C(header NAME), C(endpoint /path).
      type: str
    ok:
      description: Whether it held.
      type: bool
    expected:
      description: What was wanted.
      type: str
    got:
      description: What was found.
      type: str
    request:
      description: Name of the request, or its number from 1. Only with O(requests).
      type: str
results:
  description:
    - One entry for every request that was sent, each with C(name), C(url), C(model), C(api), C(content),
      C(finish_reason), C(usage), C(ttft), C(tokens_per_second), C(elapsed), C(status), C(headers), C(error) and C(checks).
    - C(headers) are those of the response, their names in lower case.
    - C(error) is the kind of trouble when there was no whole answer, one of C(dns), C(refused), C(unreachable),
      C(timeout_connect), C(timeout_idle), C(timeout_total), C(tls), C(reset), C(closed), C(truncated),
      C(http_status), C(unauthorized), C(model_not_served), C(stream_error), C(bad_response).
  returned: when a request was sent
  type: list
  elements: dict
engine:
  description:
    - What a second request, for one token, and the server's metrics say after a request without an answer. V(answers), V(busy)
      (late again, while the engine's counters move), V(hung) (late again, and they stand still), V(failing) (an error again);
      empty where it is not known.
  returned: on failure
  type: str
  sample: hung
msg:
  description: The first failed check in one sentence, and what to do next.
  returned: on failure
  type: str
  sample: "Verification of model 'tiny' at http://127.0.0.1:8000 failed in check 'pattern': expected a match of /Paris/,
    got \"L'Étoile, la Marseillaise\" (finish_reason stop). The server runs but answers wrongly: ..."
"""

from ansible.module_utils.basic import AnsibleModule

from ansible.module_utils.vllm_fleet.common.secrets import forms
from ansible.module_utils.vllm_fleet.vllm import chat, chat_options


class Module(AnsibleModule):
    """AnsibleModule that keeps the secrets in headers out of its output and the node's log, which come before main."""

    def _load_params(self) -> None:
        super()._load_params()
        self.no_log_values.update(forms(tuple(sorted(chat_options.secrets(self.params)))))


def main() -> None:
    """Send the requests, check the answers, return both."""
    module = Module(**chat_options.SPEC, supports_check_mode=True)
    try:
        requests = chat_options.build_requests(module.params)
    except ValueError as error:
        module.fail_json(msg=f"Nothing was sent: {error}")
    result = chat.probe(requests, many=bool(module.params["requests"]))
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
