"""What a server decides once: `auto`, and shares of the FLOPs, without vLLM."""

import pytest
from transformers import AutoConfig

from vlmcompress.errors import VLMCompressError
from vlmcompress.models.names import resolve
from vlmcompress.serving import at_start
from vlmcompress.serving.at_start import settled
from vlmcompress.serving.counts import method_of
from vlmcompress.serving.settings import Settings
from vlmcompress.tokens import Grid


@pytest.fixture(params=["tiny-llava", "tiny-qwen"])
def config(request):
    return AutoConfig.from_pretrained(resolve(request.param))


def test_counts_and_shares_stay_as_they_are(config):
    asked = Settings("divprune", "25%")
    assert settled(asked, config) == (asked, "")


def test_auto_names_a_method_that_can_be_served(config):
    found, reason = settled(Settings("auto", "25%"), config)
    assert found.budget == "25%"
    assert method_of(found.method)
    assert "of the tokens" in reason


def test_a_share_of_the_flops_becomes_one_of_the_tokens(config):
    small, large = (
        float(settled(Settings("divprune", f"{share} flops"), config)[0].budget.rstrip("%"))
        for share in (0.8, 0.9)
    )
    assert 0 < small < large < 100


def test_the_remark_tells_of_method_and_share(config):
    _, reason = settled(Settings("auto", "0.8 flops"), config)
    assert reason.count("(") >= 2
    assert "the share that meets 0.8 flops for a typical picture" in reason


def test_a_picture_is_typical_where_the_model_names_no_size(config, monkeypatch):
    def share():
        return settled(Settings("divprune", "0.9 flops"), config)[0].budget

    before = share()
    monkeypatch.setattr(at_start, "_PICTURE", Grid(1, 40, 40))
    assert (share() == before) == (config.model_type == "llava")


def test_the_configuration_is_left_alone(config):
    before = config.to_dict()
    settled(Settings("auto", "0.8 flops"), config)
    assert config.to_dict() == before


def test_no_share_is_cheap_enough(config):
    with pytest.raises(VLMCompressError, match="flops"):
        settled(Settings("divprune", "0.0001 flops"), config)


def test_a_time_is_refused(config):
    with pytest.raises(VLMCompressError, match="a server has no time"):
        settled(Settings("divprune", "20 ms"), config)
