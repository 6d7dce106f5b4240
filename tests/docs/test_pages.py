"""Every command, body and sample of README.md and docs/ runs as written.

README's serve line is typed into a shell, with the package installed from its wheel. The servers of
other serve lines are forked from a process that has SGLang imported; `make soak` types them, too.

What is excepted says so where the reader sees it, in the comment of the command: `(GPU host)`,
`(downloads)`, and those that take long. `make soak` runs the ones of minutes; of all others it is
checked that program, module and flags exist.
"""

import json
from collections import Counter

import pytest
from helpers.fresh import run
from helpers.promql import parse

from sgl_sparsekv.serving.metrics import METRICS

from .known import complaint
from .pages import KINDS, MINUTES, PAGES, Block, Command, blocks, commands, spans
from .reader import README, Reader
from .servers import HERE

ALL = commands()
RUN = [one for one in ALL if not one.mark]
EXCEPTED = [one for one in ALL if one.mark]
LONG = list({one.text: one for one in EXCEPTED if one.mark == MINUTES}.values())
FOREVER = "until Ctrl-C"
"""In the comment of a command that has no end of its own."""


def of_kind(kind: str) -> list[Block]:
    """Blocks of a kind."""
    return [block for block in blocks() if block.kind == kind]


def test_every_block_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """And what is run and what is not is told, one by one."""
    unknown = [str(block) for block in blocks() if block.kind not in KINDS]
    assert not unknown, f"neither command nor anything else that is known: {unknown}"
    counts = ", ".join(f"{n} {mark}" for mark, n in Counter(c.mark for c in EXCEPTED).items())
    bodies, samples = len(of_kind("json")), len(of_kind("python"))
    assert len(PAGES) > 20 and len(RUN) > 20 and bodies and samples
    with capsys.disabled():
        print(
            f"\n{len(PAGES)} pages: {len(RUN)} commands, {bodies} bodies and {samples} samples "
            f"are run, {len(EXCEPTED)} commands excepted ({counts})"
        )
        for one in EXCEPTED:
            print(f"  ({one.mark}) {one.block.page}:{one.line}: {one.text}")


@pytest.mark.parametrize("command", RUN, ids=str)
def test_a_command_runs_as_written(reader: Reader, command: Command) -> None:
    """To exit status 0; a serve line until it answers."""
    if command.serves:
        reader.server(command.block.page, command.line)
    elif FOREVER in command.comment:
        assert reader.run_until_interrupted(command, command.text.split()[-1]) == 0
    else:
        done = reader.run(command)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("command", EXCEPTED, ids=str)
def test_an_excepted_command_could_run(command: Command) -> None:
    """Nothing in it is unknown to the program it names."""
    assert not complaint(command.text)


@pytest.mark.soak
@pytest.mark.parametrize("command", LONG, ids=str)
def test_a_command_of_minutes_runs_as_written(reader: Reader, command: Command) -> None:
    """The same as the short ones."""
    done = reader.run(command, timeout=3600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize(("page", "text"), spans(), ids=str)
def test_a_command_within_a_sentence_could_run(page: str, text: str) -> None:
    """It names what exists; dots stand for what was said above."""
    said = text.partition(" > ")[0].replace(" ...", "")
    assert not complaint(said), page


@pytest.mark.parametrize("block", of_kind("json"), ids=str)
def test_a_request_body_is_answered_as_it_asks(reader: Reader, block: Block) -> None:
    """By `/generate`, with the options that it names."""
    answer = reader.server(block.page, block.line).ask(block.text)
    asked = json.loads(block.text)["sampling_params"]["custom_params"]["sparsekv"]
    assert asked.items() <= answer["meta_info"]["sparsekv"].items()


@pytest.mark.parametrize("block", of_kind("python"), ids=str)
def test_a_python_sample_runs(reader: Reader, block: Block) -> None:
    """As a file: the frontend language reads its source."""
    address = reader.server(block.page, block.line).address
    sample = reader.folder / f"sample_{block.line}.py"
    sample.write_text(reader.words.resolve(block.text, address))
    done = run(["python", str(sample)], reader.folder, HERE, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("block", of_kind("promql"), ids=str)
def test_a_query_names_metrics_that_exist(block: Block) -> None:
    """Parsed by the reader of the dashboard's expressions."""
    known = {metric.name for metric in METRICS}
    queries = "\n".join(line for line in block.lines if not line.startswith("#")).split("\n\n")
    assert queries
    for query in queries:
        named = parse(query).metrics
        assert named and named <= known


def test_readmes_server_runs_from_the_wheel(reader: Reader) -> None:
    """Kernels included: no process of it has mapped a library of the source tree."""
    server = reader.server(README.block.page, README.line)
    maps = f"cat $(pgrep -g {server.process.pid} | sed 's,.*,/proc/&/maps,')"
    mapped = run(["bash", "-c", maps], reader.folder, HERE, timeout=60).stdout
    kernels = {line.split()[-1] for line in mapped.splitlines() if "kernels-" in line}
    assert kernels and all(path.startswith(str(reader.fresh.packages)) for path in kernels)
