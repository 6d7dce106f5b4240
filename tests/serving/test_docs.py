"""`docs/options.md` names every option with its default, and nothing else."""

import json
import re
from dataclasses import fields
from pathlib import Path

from sgl_sparsekv.config import REQUEST_FIELDS, SERVER_FIELDS, ServerOptions
from sgl_sparsekv.geometry import UNIT_SIZE
from sgl_sparsekv.ops import DEVICES
from sgl_sparsekv.serving.guard import MAX_BODY

DOC = (Path(__file__).parents[2] / "docs" / "options.md").read_text()


def documented() -> dict[str, object]:
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", DOC, re.MULTILINE)
    return {name: json.loads(default) for name, default in rows}


def test_every_option_with_its_default() -> None:
    assert documented() == ServerOptions().as_dict()
    assert set(documented()) == {*REQUEST_FIELDS, *SERVER_FIELDS}


def test_numbers_in_the_text() -> None:
    assert f"units of {UNIT_SIZE} tokens" in DOC
    assert f"above {MAX_BODY >> 20} MiB" in DOC
    for device in DEVICES:
        assert f"`{device}`" in DOC


def test_every_key_of_the_echo_is_listed() -> None:
    from sgl_sparsekv.backend.request_table import RequestEntry

    entry = RequestEntry("", ServerOptions().request)
    assert {field.name for field in fields(entry.options)} <= set(entry.report())
    for key in (*entry.report(), *entry.telemetry.report(0)):
        assert f"`{key}`" in DOC


def test_what_telemetry_is_said_to_be() -> None:
    from sgl_sparsekv.backend.telemetry import SAMPLE_EVERY

    assert f"in every {SAMPLE_EVERY}th after it" in " ".join(DOC.split())
