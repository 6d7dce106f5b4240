import json

import pytest

SHAPE = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}


@pytest.fixture(scope="session")
def chain_model(tmp_path_factory):
    """What an evaluation needs of the analytic model: its tokenizer and its context."""
    from sgl_sparsekv.models import build_analytic_tokenizer

    folder = tmp_path_factory.mktemp("analytic")
    build_analytic_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**SHAPE, "max_position_embeddings": 4096}))
    return folder


@pytest.fixture(scope="session")
def prose_model(tmp_path_factory):
    """A tokenizer that knows nothing of this package's documents."""
    from sgl_sparsekv.models import build_text_tokenizer

    folder = tmp_path_factory.mktemp("other")
    build_text_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": 24}))
    return folder
