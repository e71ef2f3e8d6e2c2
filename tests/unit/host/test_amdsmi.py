# SPDX-License-Identifier: Apache-2.0
"""amdsmi.py on what amd-smi prints: both shapes, and the ways in which a figure can be absent."""

import json

import pytest

from ansible.module_utils.vllm_fleet.host import amdsmi

ECC_ROW = {
    "gpu": 0,
    "ecc": {
        "total_correctable_count": 3,
        "total_uncorrectable_count": 0,
        "total_deferred_count": 1,
        "cache_correctable_count": 0,
        "cache_uncorrectable_count": 0,
    },
}


def shapes(rows):
    """ROCm 6: a list. ROCm 7 and later: wrapped. Either may follow a warning."""
    text = json.dumps(rows, indent=4)
    wrapped = json.dumps({"gpu_data": rows}, indent=4)
    warning = "[WARNING] AMD-SMI: user not in group 'render' {see docs}\n"
    return [text, wrapped, warning + text, warning + wrapped + "\ntrailing text\n"]


@pytest.mark.parametrize("text", shapes([ECC_ROW]))
def test_ecc_in_both_shapes(text):
    assert amdsmi.ecc(text) == {0: amdsmi.Ecc(3, 0, 1)}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # Secondary partitions and virtual functions answer N/A.
        ({"gpu": 1, "ecc": {"total_correctable_count": "N/A", "total_uncorrectable_count": "N/A"}}, (None, None, None)),
        ({"gpu": 1, "ecc": "N/A"}, (None, None, None)),
        ({"gpu": 1}, (None, None, None)),
        ({"gpu": "1", "ecc": {"total_correctable_count": "7"}}, (7, None, None)),
        ({"gpu": 1, "ecc": {"total_uncorrectable_count": {"value": 2, "unit": ""}}}, (None, 2, None)),
        ({"gpu": 1, "ecc": {"total_deferred_count": {"value": "N/A", "unit": ""}}}, (None, None, None)),
    ],
)
def test_ecc_figures(row, expected):
    assert amdsmi.ecc(json.dumps([row])) == {1: amdsmi.Ecc(*expected)}


PAGE = {"page_address": 4096, "page_size": 4096, "status": "RESERVED"}
NONE = "No bad pages found."


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"retired": NONE, "pending": NONE, "un_res": NONE}, (0, 0, 0)),
        ({"retired": "N/A", "pending": "N/A", "un_res": "N/A"}, (None, None, None)),
        ({"retired": [PAGE, PAGE], "pending": NONE, "un_res": NONE}, (2, 0, 0)),
        ({"retired": PAGE, "pending": PAGE, "un_res": NONE}, (1, 1, 0)),  # one page comes without its brackets
        ({"retired": []}, (0, None, None)),
    ],
)
def test_bad_pages(row, expected):
    for text in shapes([{"gpu": 4, **row}]):
        assert amdsmi.bad_pages(text) == {4: amdsmi.BadPages(*expected)}


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([{"process_info": "No running processes detected"}], []),
        ("No running processes detected", []),
        (
            [{"process_info": {"name": "llama-server", "pid": 28389, "mem_usage": {"value": 2353860608, "unit": "B"}}}],
            [(0, 28389, "llama-server", 2353860608)],
        ),
        ([{"pid": 5, "name": "x", "memory_usage": {"vram_mem": {"value": 2, "unit": "MB"}}}], [(0, 5, "x", 2 << 20)]),
        ([{"process_info": {"name": "N/A", "pid": "N/A"}}], []),
        ([{"process_info": {"pid": 5}}, {"process_info": {"pid": 5, "mem_usage": "N/A"}}], [(0, 5, None, None)]),
    ],
)
def test_processes(entries, expected):
    for text in shapes([{"gpu": 0, "process_list": entries}]):
        assert amdsmi.processes(text) == [amdsmi.Process(*values) for values in expected]


def test_identities():
    rows = [
        {"gpu": 0, "bdf": "0000:0B:00.0", "uuid": "x", "kfd_id": 7, "node_id": 3, "partition_id": 0},
        {"gpu": 1, "bdf": "N/A", "kfd_id": "N/A"},
    ]
    for text in shapes(rows):
        assert amdsmi.identities(text) == [
            amdsmi.Identity(0, "0000:0b:00.0", 7),
            amdsmi.Identity(1, None, None),
        ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"value": 196288, "unit": "MB"}, 205822885888),
        ({"value": 12, "unit": "GB"}, 12 << 30),
        ({"value": 2353860608, "unit": "B"}, 2353860608),
        ({"value": "N/A", "unit": "N/A"}, None),
        ({"value": 1, "unit": "furlongs"}, None),
        (5, 5),
        ("N/A", None),
        (None, None),
        (True, None),
    ],
)
def test_sizes(value, expected):
    assert amdsmi.size(value) == expected


@pytest.mark.parametrize("text", ["", "AMDSMI_STATUS_DRIVER_NOT_LOADED", "[WARNING] no", "{broken", '"text"', "[1, 2]"])
def test_no_json_is_an_error_that_shows_what_came(text):
    with pytest.raises(ValueError, match="amd-smi printed no JSON table"):
        amdsmi.ecc(text)


def test_no_gpus():
    assert amdsmi.ecc("[]") == {}
    assert amdsmi.ecc('{"gpu_data": []}') == {}
