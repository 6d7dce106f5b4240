"""A live `/metrics` shows what dashboard and alert rules ask for."""

import json
import re
import urllib.request

from helpers.dashboard import queries

from sgl_sparsekv.models.documents import chain_document
from sgl_sparsekv.tooling.servers import ServerProcess

from .client import ask_for, body_of, generate, get, post

WHEN_IT_HAPPENS = {"sparsekv:segments_evicted_total", "sparsekv:segments_unindexed_total"}
"""Labelled series that are not there before the first such event."""
ON_A_GPU = {"sparsekv:batch_steps_total"}
"""Counted by the GPU's backend alone: `test_fused.py` looks for it."""


def test_a_live_server_shows_every_series_and_label(ours: ServerProcess) -> None:
    """After one request of each kind that counts something."""
    document = chain_document(3000, num_questions=2, num_hops=8, seed=17)
    asked = {"method": "clusterkv", "budget": 256, "telemetry": True}
    asks = [ask_for(document, question, asked) for question in document.questions]
    generate(ours.url, asks[0])
    streamed = urllib.request.Request(
        f"{ours.url}/generate",
        json.dumps(body_of(asks[1], stream=True)).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(streamed, timeout=120) as answer:
        answer.read()
    assert (
        post(
            f"{ours.url}/generate", body_of(ask_for(document, document.questions[0], {"sink": -1}))
        )[0]
        == 400
    )
    shown: dict[str, set[str]] = {}
    for line in str(get(f"{ours.url}/metrics")).splitlines():
        sample = re.match(r"([\w:]+)(?:\{(.*)\})? ", line)
        if sample is not None:
            labels = re.findall(r'(\w+)="', sample[2] or "")
            shown.setdefault(sample[1], set()).update(labels, ("instance",))
    for where, expression, _ in queries():
        named = expression.metrics - WHEN_IT_HAPPENS - ON_A_GPU
        assert named <= set(shown), (where, named - set(shown))
        if named:
            labels = set.union(*(shown[name] for name in named))
            assert expression.labels <= labels, (where, expression.labels - labels)
