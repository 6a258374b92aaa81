"""Ask a question about an image with all visual tokens, then with a budget.

python examples/image_qa.py vlmcompress/assets/samples/street.png "what color is the circle ?"
"""

from __future__ import annotations

import argparse

import vlmcompress
from vlmcompress.media import read_image


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer with and without token reduction.")
    parser.add_argument("image")
    parser.add_argument("question")
    parser.add_argument("--model", default="tiny-llava", help="built-in name, folder or hub id")
    parser.add_argument("--method", help="default: divprune, or what the profile takes")
    parser.add_argument("--budget", default="25%", help='visual tokens per image: 64 or "25%%"')
    parser.add_argument("--profile", help="of `vlmcompress tune`, in the place of a method")
    arguments = parser.parse_args()
    method = arguments.method or (None if arguments.profile else "divprune")

    model, processor = vlmcompress.load(arguments.model)
    content = [{"type": "image"}, {"type": "text", "text": arguments.question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(images=read_image(arguments.image), text=text, return_tensors="pt")
    inputs = inputs.to(model.device, dtype=model.dtype)
    prompt_length = inputs["input_ids"].shape[1]

    def answer() -> str:
        ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        return processor.decode(ids[0, prompt_length:], skip_special_tokens=True).strip()

    print("all tokens:", answer())
    with vlmcompress.compress(
        model, method, arguments.budget, profile=arguments.profile
    ) as compression:
        print("fewer tokens:", answer())
    print(compression.report())


if __name__ == "__main__":
    main()
