"""A method of your own, by name, like the built-in ones.

python examples/own_method.py IMAGE "a question ?"
"""

import sys
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

import vlmcompress
from vlmcompress.methods import Selector
from vlmcompress.ops.select import top_k


@vlmcompress.register_method
@dataclass(frozen=True)
class Loudest(Selector):
    """Keep the tokens that differ most from the mean token."""

    name: ClassVar[str] = "loudest"
    summary: ClassVar[str] = "keeps what is unlike the mean"
    power: float = 2.0

    def select(self, tokens, count):
        x = tokens.features.float()
        return top_k((x - x.mean(0)).abs().pow(self.power).sum(-1), count)


model, processor = vlmcompress.load("tiny-llava")
content = [{"type": "image"}, {"type": "text", "text": sys.argv[2]}]
chat = [{"role": "user", "content": content}]
text = processor.apply_chat_template(chat, add_generation_prompt=True)
inputs = processor(images=Image.open(sys.argv[1]), text=text, return_tensors="pt")
with vlmcompress.compress(model, "loudest(power=1.0)", budget="25%") as c:
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
print(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
print(c.report())
