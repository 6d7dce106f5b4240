"""The second act's part of `demo.html`."""

from html import escape
from importlib.resources import files
from string import Template

from ...config import RequestOptions
from ..markup import table
from .act import RealAct
from .result import HEAD, table_rows
from .saying import Saying
from .score import RealRun, parted
from .script import CONTINUATION_TOKENS, QUESTIONS, Passage


def section(act: RealAct) -> str:
    """Figures, and what dense and sparse said side by side; or why there is nothing."""
    if act.script is None:
        return f'<p class="soft">Left out: {escape(act.skipped)}.</p>'
    told = [run for run in act.runs if run.options]
    sparse = [run for run in told if run.options["method"] != "full"]
    metadata = ", ".join(f"{run.name} {run.metadata_read_fraction:.1%}" for run in sparse)
    texts = [_passage(passage, told, i) for i, passage in enumerate(act.script.passages)]
    return Template(files(__package__).joinpath("section.html").read_text()).substitute(
        model=escape(act.model),
        context=f"{len(act.script.shared):,}",
        source=escape(act.script.source.replace("`", "")),
        layers=_layers(RequestOptions().dense_layers),
        verdict=escape(_verdict(sparse)),
        table=f'<div class="scroll">{table(HEAD, table_rows(act))}</div>',
        continuation=CONTINUATION_TOKENS,
        questions=len(QUESTIONS),
        metadata=escape(metadata),
        texts="".join(texts),
    )


def _layers(dense: int) -> str:
    return f"first {dense} layers of the model dense" if dense else "every layer reads sparsely"


def _verdict(sparse: list[RealRun]) -> str:
    nearest = min(sparse, key=lambda run: run.kl_nats)
    return (
        f"{nearest.name} reads {nearest.kv_read_fraction:.1%} of the KV cache and names the same "
        f"next token as dense in {nearest.agreement:.0%} of steps."
    )


def _passage(passage: Passage, runs: list[RealRun], index: int) -> str:
    """What every run said to one prompt, dense first."""
    dense = runs[0].sayings[index]
    columns = [_column(run.name, run.sayings[index], dense) for run in runs]
    return f'<h4>{escape(passage.title)}</h4><div class="texts">{"".join(columns)}</div>'


def _column(name: str, saying: Saying, dense: Saying) -> str:
    if saying is dense:
        return _card(f"{name} (dense)", f"{len(saying.ids)} tokens", escape(saying.text))
    same = parted(dense.ids, saying.ids)
    before, token, after = saying.split(same)
    note = f"parts after {same} of {len(dense.ids)}" if token else "the same throughout"
    body = escape(before)
    if token:
        body += f'<mark>{escape(token)}</mark><span class="soft">{escape(after)}</span>'
    return _card(name, note, body)


def _card(name: str, note: str, body: str) -> str:
    return (
        f'<figure><figcaption><b>{escape(name)}</b> <span class="soft">{escape(note)}</span>'
        f"</figcaption><blockquote>{body}</blockquote></figure>"
    )
