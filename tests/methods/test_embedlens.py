"""EmbedLens: tokens next to odd words go; the words are found by calibration."""

from __future__ import annotations

import pytest
import torch

from vlmcompress.calibrate.embedlens import Tally, calibrate_embedlens
from vlmcompress.errors import VLMCompressError
from vlmcompress.methods.embedlens import EmbedLens, WordTable, write_table
from vlmcompress.models.loading import load
from vlmcompress.tokens import Grid, VisualTokens

WORDS = torch.eye(6)


def image(features, vocabulary=WORDS, **given):
    features = torch.as_tensor(features, dtype=torch.float32)
    return VisualTokens(features, Grid(1, 1, len(features)), vocabulary=vocabulary, **given)


@pytest.fixture
def table(tmp_path):
    """Writes a table, and gives its path."""

    def make(sink=(4,), dead=(5,), words=None):
        path = tmp_path / "table.json"
        write_table(path, {"sink": sink, "dead": dead}, origin="test", words=words)
        return str(path)

    return make


def test_the_hand_example(table):
    """methods-b section 12 (6): the second token is next to the target word."""
    tokens = image([[1, 0, 0, 0.2, 0, 0], [0, 0.1, 0, 1, 0, 0]])
    assert EmbedLens(table=table(dead=[3]), nearest=1).select(tokens, 2).tolist() == [0]
    # It is among the nearest three words of both: then the one that is nearer to a word stays.
    assert EmbedLens(table=table(dead=[3])).select(tokens, 1).tolist() == [1]


TOKENS = image(
    [
        [0.1, 0, 0, 0, 0, 1],  # dead
        [0, 0.3, 0, 0, 1, 0],  # sink
        [1, 0, 0, 0.5, 0, 0],  # alive
        [0, 0, 0.2, 0, 1, 0],  # sink, nearer to its word
        [0, 1, 0.1, 0, 0, 0],  # alive, nearer to its word
        [0, 0, 0, 0, 1, 1],  # both
    ]
)


def test_without_a_budget_the_alive_stay(table):
    method = EmbedLens(table=table(), nearest=1)
    assert method.keep_count(TOKENS.grid, None) == 6
    assert method.select(TOKENS, 6).tolist() == [2, 4]


@pytest.mark.parametrize(
    ("count", "kept"),
    [
        (0, []),
        (1, [4]),
        (2, [2, 4]),
        (3, [2, 3, 4]),
        (4, [1, 2, 3, 4]),
        (5, [0, 1, 2, 3, 4]),
    ],
    ids=str,
)
def test_with_a_budget_the_dead_go_first_then_sinks_then_the_alive(table, count, kept):
    assert EmbedLens(table=table(), nearest=2).select(TOKENS, count).tolist() == kept


def test_where_nothing_is_alive_one_token_stays(table):
    everything = EmbedLens(table=table(sink=range(6), dead=()))
    assert everything.select(TOKENS, 6).tolist() == [0]
    assert EmbedLens(table=table(sink=(), dead=())).select(TOKENS, 6).tolist() == list(range(6))


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_those_of_a_plain_loop(table, seed):
    generator = torch.Generator().manual_seed(seed)
    features, words = (torch.randn(n, 5, generator=generator) for n in (10, 12))
    alive = []
    for number, row in enumerate(features):
        cosines = [float(torch.cosine_similarity(row, word, dim=0)) for word in words]
        near = sorted(range(12), key=lambda word: -cosines[word])[:3]
        if not {2, 7, 9} & set(near):
            alive.append(number)
    method = EmbedLens(table=table(sink=[2, 9], dead=[7]))
    assert 0 < len(alive) < 10
    assert method.select(image(features, words), 10).tolist() == alive


def test_half_precision_gives_the_picks_of_its_float32_cast(table):
    generator = torch.Generator().manual_seed(0)
    features, words = (torch.randn(n, 32, generator=generator).bfloat16() for n in (40, 50))
    half = VisualTokens(features, Grid(1, 5, 8), vocabulary=words)
    whole = VisualTokens(features.float(), Grid(1, 5, 8), vocabulary=words.float())
    for count in (10, 33, 40):
        method = EmbedLens(table=table(sink=range(5), dead=range(5, 9)))
        assert torch.equal(method.select(half, count), method.select(whole, count))


def test_the_published_table_is_that_of_the_paper():
    table = WordTable.read("llava-1.5-7b")
    assert (table.sink, table.dead, table.words) == ((1141, 26673), (30296,), None)
    assert "2603.00510" in table.origin


def test_without_a_table_calibration_is_named():
    with pytest.raises(VLMCompressError, match=r"table=llava-1.5-7b .*calibrate embedlens"):
        EmbedLens()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"neither llava-1.5-7b nor .* nor a readable file: .*calibrate embedlens"),
        ("{", "no table of words"),
        ("[]", "no table of words"),
        ('{"sink": ["x"], "dead": [], "origin": ""}', "no table of words"),
        ('{"sink": [], "dead": []}', r"no table of words \('origin'\)"),
    ],
    ids=["no file", "no JSON", "a list", "a word", "no origin"],
)
def test_tables_that_cannot_be_read_are_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "x").write_text(text)
    with pytest.raises(VLMCompressError, match=message):
        EmbedLens(table=str(tmp_path / "x"))


@pytest.mark.parametrize("options", [{"sink": [6]}, {"words": 7}], ids=str)
def test_a_table_for_another_vocabulary_is_refused(table, options):
    with pytest.raises(VLMCompressError, match="another vocabulary than the 6 words of this model"):
        EmbedLens(table=table(**options)).select(TOKENS, 3)


def test_what_is_missing_or_no_number_is_refused(table):
    with pytest.raises(VLMCompressError, match="nearest must be 1 or more"):
        EmbedLens(table=table(), nearest=0)
    with pytest.raises(VLMCompressError, match="needs the vocabulary"):
        EmbedLens(table=table()).select(VisualTokens(TOKENS.features, TOKENS.grid), 3)
    with pytest.raises(VLMCompressError, match="features must be finite"):
        EmbedLens(table=table()).select(image(TOKENS.features * torch.nan), 3)


def planted(seed):
    """20 tokens near word 0 or 1 by turns, but 3 long ones near word 4 and 4 near word 5."""
    generator = torch.Generator().manual_seed(seed)
    features = WORDS[[i % 2 for i in range(13)] + [4] * 3 + [5] * 4] * 2
    features[13:16] *= 8
    features = features + 0.01 * torch.rand(20, 6, generator=generator)
    attention = torch.cat([torch.full((16,), 0.5), torch.full((4,), 0.1)])
    return image(features, cls_attention=attention)


def test_calibration_finds_planted_words():
    tally = Tally(nearest=1)
    for seed in range(4):
        tally.add(planted(seed))
    found = tally.table("planted")
    assert found == WordTable("planted", 6, (4,), (5,))
    assert EmbedLens(table="llava-1.5-7b").nearest == Tally().nearest


def test_words_of_few_tokens_or_few_images_are_no_candidates():
    tally = Tally(nearest=1)
    tally.add(planted(0))
    for seed in range(3):
        tokens = planted(seed)
        tally.add(image(tokens.features[:13], cls_attention=tokens.cls_attention[:13]))
    assert tally.in_tokens[5] / tally.tokens >= 0.05
    assert tally.table("x").dead == ()
    rare = Tally(nearest=1)
    rare.add(image([[1, 0, 0, 0, 0, 0]] * 40 + [[0, 0, 0, 0, 0, 1]]))
    assert rare.table("x").dead == (0,)


def test_without_attention_all_but_sinks_are_dead():
    tally = Tally(nearest=1)
    tally.add(image(planted(0).features))
    assert tally.table("x") == WordTable("x", 6, (4,), (0, 1, 5))


def test_calibration_without_images_is_refused():
    with pytest.raises(VLMCompressError, match="at least one image"):
        Tally().table("x")


@torch.no_grad()
def test_calibration_of_a_model_gives_a_table_that_the_method_takes(tmp_path):
    model, processor = load("tiny-llava", dtype="float32")
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    ids = torch.tensor([[5, *[token] * 144, 6, 7]])
    generator = torch.Generator().manual_seed(0)
    prompts = [
        {"input_ids": ids, "pixel_values": torch.randn(1, 3, 96, 96, generator=generator)}
        for _ in range(3)
    ]
    found = calibrate_embedlens(model, prompts, "tiny-llava, noise")
    assert found.words == model.get_input_embeddings().weight.shape[0]
    assert found.sink or found.dead, "tokens of noise are near the same few words"
    ids = {"sink": found.sink, "dead": found.dead}
    write_table(tmp_path / "t.json", ids, origin=found.origin, words=found.words)
    assert WordTable.read(str(tmp_path / "t.json")) == found
