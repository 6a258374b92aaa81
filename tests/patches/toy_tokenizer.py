"""A tokenizer whose words are w0, w1, ... with their own number, and chat templates for it."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

NAMED = ["user", "assistant", "system", "USER", "ASSISTANT", ":", "\n", "[INST]", "[/INST]"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<vision>"]

CHATML = """{% if messages[0]['role'] != 'system' %}<|im_start|> system \n w1 w2 <|im_end|> \n {%
endif %}{% for m in messages %}<|im_start|> {{ m['role'] }} \n {% if m['content'] is string %}{{
m['content'] }}{% else %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<vision> <image> {%
else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %} <|im_end|> \n {% endfor
%}{% if add_generation_prompt %}<|im_start|> assistant \n {% endif %}"""

VICUNA = """{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }} {% else
%}{{ m['role'] | upper }} : {% if m['content'] is string %}{{ m['content'] }} {% else
%}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image> \n {% else %}{{ p['text'] }} {%
endif %}{% endfor %}{% endif %}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT :{%
endif %}"""

ONE_TURN = """{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif
%}[INST] {{ messages[0]['content'] }} [/INST]"""


def make(template: str | None = None, words: int = 60) -> PreTrainedTokenizerFast:
    """Words w0 ... come first, so that small numbers are words."""
    vocabulary = [*(f"w{n}" for n in range(words)), *NAMED, "ab", "cd", *SPECIAL]
    core = Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), "isolated"),
            pre_tokenizers.Split(Regex(" "), "removed"),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=SPECIAL[4:],
    )
    tokenizer.chat_template = template
    return tokenizer
