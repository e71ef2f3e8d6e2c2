# SPDX-License-Identifier: Apache-2.0
"""Cause and remedy where the model cannot be split over the GPUs, or the container has no or too few. Pure."""

from __future__ import annotations

from .case import Case
from .phrases import Words, listed, setting, variable

#: GPUs of the largest node.
_NODE = 8


def _divisors(number: int, limit: int) -> list[int]:
    return [size for size in range(1, min(number, limit) + 1) if number % size == 0]


def heads(case: Case) -> Words:
    heads, size = int(case.get("heads")), int(case.get("size"))
    fits = _divisors(heads, len(case.context.gpus or ()) or max(64, size))
    return (
        f"tensor-parallel-size {size} does not divide the {heads} attention heads of {case.context.model_name}",
        f"Set {setting(tensor_parallel_size=max(d for d in fits if d <= size))} ({listed(fits)} divide {heads})",
    )


def dimension(case: Case) -> Words:
    number, by = int(case.get("number")), int(case.get("by"))
    return (
        f"A dimension of {number} of {case.context.model_name} cannot be split into {by} equal parts",
        f"Set tensor-parallel-size in `vllm_server_args` to one of {listed(_divisors(number, max(16, by)))}",
    )


def no_pipeline(case: Case) -> Words:
    return (
        f"{case.context.model_name} cannot be split into pipeline stages",
        f"Set {setting(pipeline_parallel_size=1)}, and spread it by tensor-parallel-size",
    )


def no_ray(case: Case) -> Words:
    return (
        f"vLLM cannot use Ray on {case.get('platform')}",
        f"Set {setting(distributed_executor_backend='mp')}",
    )


def quantised_split(case: Case) -> Words:
    size = case.context.size("tensor-parallel-size")
    return (
        f"The blocks of the quantised weights of {case.context.model_name} cannot be split into {size} equal parts",
        f"Set {setting(tensor_parallel_size=max(1, size // 2))} (now {size}), or for a mixture of experts "
        f"{setting(enable_expert_parallel='true')}",
    )


def uneven_nodes(case: Case) -> Words:
    return (
        f"The sizes do not divide each other: {case.match.group(0)}",
        "Correct nnodes, data-parallel-size and tensor-parallel-size in `vllm_server_args`",
    )


def few_gpus(case: Case) -> Words:
    have, rank = case.get("have"), case.get("rank")
    world = case.context.world * case.context.size("data-parallel-size")
    wants = case.get("wants") or str(max(world, int(rank or 0) + 1))
    count = len(case.context.gpus or ())
    if not have and count and int(wants) > count:
        return (
            f"The server needs {wants} GPUs, and the node has {count}",
            f"Set {setting(tensor_parallel_size=count)}, or serve it from several nodes (hosts with the same "
            "`vllm_server_replica`)",
        )
    if not have:
        more = "serve it from several nodes (hosts with the same `vllm_server_replica`)"
        return (
            f"The server needs more GPUs ({wants}) than the container has",
            "Set tensor-parallel-size in `vllm_server_args` to the container's number of GPUs, or "
            + (more if int(wants) > _NODE else "pass more of them (option `devices`)"),
        )
    fewer = setting(tensor_parallel_size=have)
    if case.context.size("data-parallel-size") > 1:
        fewer = "data-parallel-size, or data-parallel-size-local over several nodes, so that tensor-parallel-size "
        fewer += f"times it is at most {have}"
    return (
        f"The server needs {wants} GPUs, but the container sees {have}",
        f"Set {fewer}, or give the container all the node's GPUs (option `devices`, and "
        "HIP_VISIBLE_DEVICES in `vllm_server_env`)",
    )


def permission(case: Case) -> Words:
    return (
        "The container's process may not open the GPU devices, because it is in none of the groups that own them on "
        "the node",
        "Put the numbers that `stat -c %g /dev/kfd /dev/dri/renderD*` prints on the node into the option `groups` "
        "(vllm_server_groups)",
    )


def no_group(case: Case) -> Words:
    return (
        f"The image has no group {case.get('group')}, and Docker looks up group names in the image, not on the node",
        "Use the group's number from `getent group` on the node instead of its name, or deploy again (the module "
        "passes numbers)",
    )


def driver(case: Case) -> Words:
    device = case.get("device") or "/dev/kfd"
    return (
        f"{device} does not exist on the node, so the amdgpu driver is not loaded",
        "Run `sudo modprobe amdgpu` and read `dmesg`, or install the driver with "
        "`ansible-playbook deploy.yml -i INVENTORY --tags prepare` if the node has no such module",
    )


def old_driver(case: Case) -> Words:
    return (
        f"The node's GPU driver is older than {case.context.image_name} needs",
        "Install a newer driver with `ansible-playbook deploy.yml -i INVENTORY --tags prepare`, or choose an image "
        "with an older ROCm (`vllm_image_tag`)",
    )


def no_cdi(case: Case) -> Words:
    return (
        f"Docker does not know the device {case.get('device')}, because the AMD container toolkit has written no "
        "CDI file for this node's GPUs",
        "Set the option `devices` to /dev/kfd and /dev/dri, or write the CDI file with `amd-ctk cdi generate`",
    )


def no_gpu(case: Case) -> Words:
    count = len(case.context.gpus or ())
    has = f"vLLM finds no GPU in the container, though the node has {count}"
    if any(library in line for line in case.run.lines for library in ("libcudart.so", "libcuda.so")):
        return (
            f"{case.context.image_name[0].upper()}{case.context.image_name[1:]} is built for CUDA, not for ROCm, so "
            "vLLM finds no GPU",
            "Use an image built for ROCm such as vllm/vllm-openai-rocm (`vllm_image_name`)",
        )
    if count:
        return (
            has,
            "Pass /dev/kfd and /dev/dri (option `devices`) and the numbers of the groups that own them (option "
            "`groups`, `stat -c %g /dev/kfd /dev/dri/renderD*` on the node), and use an image built for ROCm such as "
            "vllm/vllm-openai-rocm",
        )
    return (
        "vLLM finds no GPU and no other device to run on",
        "Check that `rocminfo` shows GPUs on the node, that the container gets /dev/kfd and /dev/dri and is in the "
        "groups that own them, and that the image is built for ROCm "
        f"({variable(VLLM_LOGGING_LEVEL='DEBUG')} makes vLLM say why it refused each platform)",
    )
