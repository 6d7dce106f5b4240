"""`sparsekv eval needle` from the command line, against a server that looks answers up."""

import json
import random
from itertools import pairwise
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from fake_server import fake_server

from sgl_sparsekv import cli
from sgl_sparsekv.evaluation import forced
from sgl_sparsekv.evaluation.results import read
from sgl_sparsekv.evaluation.server import server_spec
from sgl_sparsekv.evaluation.settings import Settings
from sgl_sparsekv.evaluation.tasks.asking import Asking
from sgl_sparsekv.evaluation.tasks.needle.task import Grid, NeedleTask
from sgl_sparsekv.evaluation.tokens import Tokens
from sgl_sparsekv.tooling.room import KEPT

DEPTHS = 5
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def call(chain_model, tmp_path, capsys):
    """Run the command; exit status, lines of stdout and stderr, and the file of results."""
    out = tmp_path / "needle.jsonl"

    def evaluate(*arguments, url=None, model=chain_model):
        where = ["--url", url] if url else []
        where += ["--model", str(model)] if model else []
        common = ["--lengths", "1k,2k", "--depths", str(DEPTHS), "--budget", "256", "--quiet"]
        status = cli.main(["eval", "needle", *where, *common, "--out", str(out), *arguments])
        said = capsys.readouterr()
        lines = (said.out.splitlines(), said.err.splitlines())
        return SimpleNamespace(status=status, out=lines[0], err=lines[1], path=out)

    return evaluate


def marks(path):
    """Method -> rows of ✓ and ✗, from the picture itself."""
    found = {}
    for panel in ElementTree.parse(path).getroot().iter(f"{SVG}g"):
        texts = [(text.get("class"), text.text) for text in panel.iter(f"{SVG}text")]
        squares = [text for kind, text in texts if kind == "on"]
        columns = len(squares) // DEPTHS
        found[texts[0][1].split()[0]] = [
            squares[i : i + columns] for i in range(0, len(squares), columns)
        ]
    return found


def test_a_method_that_is_wrong_at_random_depths_ranks_last_and_shows_where(call, chain_model):
    wrong = sorted(random.Random(7).sample(range(DEPTHS), 2))
    with fake_server(chain_model, wrong={"mean_std": wrong}) as server:
        done = call("--methods", "quest,full,mean_std", url=server.url, model=None)
    assert done.status == 0 and done.err == []
    page = done.path.with_suffix(".html").read_text()
    assert page.count('aria-label="needles found') == 3 and "mean_std" in page
    assert [line.split()[0] for line in done.out[2:5]] == ["quest", "full", "mean_std"]
    found = marks(done.path.with_suffix(".svg"))
    assert found["quest"] == found["full"] == [["✓", "✓"]] * DEPTHS
    assert [row for row in range(DEPTHS) if "✗" in found["mean_std"][row]] == wrong
    assert all(found["mean_std"][row] == ["✗", "✗"] for row in wrong)


def test_a_cell_says_what_was_read_and_the_header_what_it_means(call, chain_model):
    with fake_server(chain_model) as server:
        done = call("--methods", "all", url=server.url)
    header, cells = read(done.path)
    assert header["methods"] == ["full", "mean_std", "quest", "streaming"]
    assert header["server"]["sglang"] == "fake" and "commit" in header["environment"]
    assert len(cells) == 4 * 2 * DEPTHS
    quest = next(cell for cell in cells if cell.method == "quest" and cell.length == 2048)
    assert quest.value == 1 and quest.budget == 256 and quest.tokens_attended == 3 * 256
    assert quest.tokens_in_context > 3 * 1900 and quest.prompt_tokens > 1900
    assert server.bodies[0]["sampling_params"]["custom_params"]["sparsekv"]["dense_layers"] == 0


@pytest.mark.parametrize("protocol", ["prefilled", "decoded"])
def test_table_and_map_say_how_much_of_a_needle_a_view_kept(call, chain_model, protocol):
    """Of two heads one keeps all of the first 500 tokens, and one all tokens."""
    told = {"made": 5000, "map": {"1": [[0, 500, 4500], [0, 5000]]}}
    with fake_server(chain_model, applied={"view": told}) as server:
        arguments = ("--methods", "quest", "--lengths", "1k", "--protocol", protocol)
        done = call(*arguments, url=server.url)
    assert server.bodies[0]["sampling_params"]["custom_params"]["sparsekv"]["kept_map"] is True
    kept = [cell.detail["needle kept"] for cell in read(done.path)[1]]
    assert kept[:2] == [1.0, 1.0] and kept[3:] == [0.5, 0.5]
    assert "needle kept" in done.out[0] and "0.7" in done.out[2]
    picture = done.path.with_suffix(".svg").read_text()
    assert picture.count("✓ 100%</text>") >= 2 and picture.count("✓ 50%</text>") >= 2
    assert "share of the needle" in done.path.with_suffix(".html").read_text()


def test_questions_about_one_document_share_it_as_a_prefix(call, chain_model):
    with fake_server(chain_model) as server:
        call("--methods", "full,quest", url=server.url)
    first = server.bodies[: 2 * DEPTHS]
    assert len({body["text"].partition("question :")[0] for body in first}) == 1


def test_a_question_fed_in_decode_is_no_part_of_prompt_or_answer(call, chain_model):
    with fake_server(chain_model, wrong={"streaming": range(DEPTHS)}) as server:
        arguments = ("--methods", "quest,streaming", "--protocol", "decoded", "--lengths", "1k")
        done = call(*arguments, url=server.url)
    header, cells = read(done.path)
    assert header["protocol"] == "decoded"
    assert [cell.value for cell in cells] == [1] * DEPTHS + [0] * DEPTHS
    assert all(cell.said.split() == list(cell.expected) for cell in cells if cell.value)
    body = server.bodies[0]
    question = body["sampling_params"]["custom_params"][forced.FORCED]
    assert len(question) == 6 and body["sampling_params"]["max_new_tokens"] == 8
    assert len({tuple(body["input_ids"]) for body in server.bodies}) == 1


def test_a_server_that_goes_away_leaves_the_finished_cells_and_resume_asks_the_rest(
    call, chain_model
):
    with fake_server(chain_model, die_after=7) as server:
        done = call("--methods", "full,quest", url=server.url)
    assert done.status == 2 and len(done.err) == 1 and "does not answer" in done.err[0]
    assert len(read(done.path)[1]) == 7 and done.path.with_suffix(".svg").exists()
    with fake_server(chain_model) as server:
        again = call("--methods", "full,quest", url=server.url)
        assert again.status == 2 and "--resume" in again.err[0] and not server.bodies
        again = call("--methods", "full,quest", "--resume", url=server.url)
    assert again.status == 0 and len(server.bodies) == 2 * 2 * DEPTHS - 7
    keys = [cell.key for cell in read(done.path)[1]]
    assert len(set(keys)) == len(keys) == 2 * 2 * DEPTHS


@pytest.mark.parametrize(
    ("change", "arguments", "says"),
    [
        ({"sparsekv": False}, (), "--attention-backend sparsekv"),
        ({"context_length": 1500}, (), "context of 1500 tokens, got 2048"),
        ({}, ("--lengths", "8k"), "context of 4096 tokens, got 8192"),
        ({}, ("--lengths", "90"), "num_tokens"),
        ({}, ("--methods", "clusterkv"), "method must be one of"),
        ({}, ("--budget", "3"), "budget must be at least"),
        ({"forcing": False}, ("--protocol", "decoded"), "--enable-custom-logit-processor"),
        ({"applied": {"budget": 999}}, (), "applied budget 999"),
        ({"applied": {"method": "full"}}, ("--methods", "quest"), "applied method 'full'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(call, chain_model, change, arguments, says):
    with fake_server(chain_model, **change) as server:
        done = call(*arguments, url=server.url)
    assert done.status == 2 and done.out == []
    assert len(done.err) == 1 and says in done.err[0]
    assert not done.path.exists()


def test_a_missing_folder_and_a_dead_server_are_one_sentence(call, tmp_path):
    done = call(model=tmp_path / "nowhere")
    assert done.status == 2 and len(done.err) == 1 and "nowhere" in done.err[0]
    done = call(url="http://127.0.0.1:9")
    assert done.status == 2 and len(done.err) == 1 and "does not answer" in done.err[0]
    done = call(model=None)
    assert done.status == 2 and "--url and --model" in done.err[0]


def test_any_other_model_is_asked_about_numbers_in_prose(call, prose_model):
    with fake_server(prose_model, wrong={"streaming": range(DEPTHS)}) as server:
        done = call("--methods", "quest,streaming", url=server.url, model=prose_model)
    header, cells = read(done.path)
    assert done.status == 0 and header["documents"] == "prose" and header["dense_layers"] is None
    assert all(cell.value == (cell.method == "quest") for cell in cells)
    assert all(len(cell.expected[0]) == 10 and cell.nth / 5 <= cell.place for cell in cells)


def test_a_started_server_offers_what_is_asked_for_and_forces_only_if_it_must(chain_model):
    settings = Settings("m", ("full", "quest"), (256,), 0, concurrency=20)
    grid = Grid("chain", (1024, 3000), 3)
    task = NeedleTask(Asking(Tokens(chain_model)), grid)
    flags = server_spec(chain_model, settings, task).flags
    after = dict(pairwise(flags))
    assert after["--sparsekv-methods"] == "full,quest" and after["--context-length"] == str(
        3000 + KEPT
    )
    assert after["--max-running-requests"] == "20"
    assert "--enable-custom-logit-processor" not in flags
    forcing = NeedleTask(Asking(Tokens(chain_model), "decoded"), grid)
    assert "--enable-custom-logit-processor" in server_spec(chain_model, settings, forcing).flags


def test_a_started_server_has_room_for_the_chat_template_as_well(prose_model):
    tokens = Tokens(prose_model)
    around = ("A user says: ", " What does the model say?")
    task = NeedleTask(Asking(tokens, chat=around), Grid("prose", (3000,), 2))
    flags = dict(
        pairwise(server_spec(prose_model, Settings("m", ("full",), (256,), 0), task).flags)
    )
    for question in task.build(task.parts()[0]):
        prompt = len(tokens.ids(around[0] + question.document + question.question + around[1]))
        assert prompt + question.max_new_tokens + KEPT <= int(flags["--context-length"])


def test_forced_tokens_are_the_only_choice_once_the_prompt_is_read_until_all_are_said():
    import torch

    request = SimpleNamespace(extend_end=2, origin_input_ids=[5, 6, 7, 8])
    rows = [{forced.FORCED: [3, 1], "__req__": request}, {"__req__": request}]
    picks = []
    for end in (2, 4, 4, 4):
        request.extend_end = end
        logits = torch.tensor([[0.0, 0.0, 9.0, 0.0], [0.0, 0.0, 9.0, 0.0]])
        picks.append(forced.ForcedTokens()(logits, rows).argmax(-1).tolist())
    assert picks == [[2, 2], [3, 2], [1, 2], [2, 2]]


def test_the_server_can_read_what_is_sent_as_a_processor():
    import pickle

    sent = json.loads(forced.processor())
    assert pickle.loads(bytes.fromhex(sent["callable"])) is forced.ForcedTokens
