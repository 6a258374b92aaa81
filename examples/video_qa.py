"""Ask a question about a clip with all visual tokens, then with a budget.

python examples/video_qa.py vlmcompress/assets/samples/runway.mp4 "which way does the circle move ?"
"""

from __future__ import annotations

import argparse

import vlmcompress


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer with and without token reduction.")
    parser.add_argument("video")
    parser.add_argument("question")
    parser.add_argument("--model", default="tiny-qwen", help="built-in name, folder or hub id")
    parser.add_argument("--method", help="default: divprune, or what the profile takes")
    parser.add_argument("--budget", default="25%", help='64, "25%%", "16 per frame"')
    parser.add_argument("--profile", help="of `vlmcompress tune`, in the place of a method")
    parser.add_argument("--max-memory", help='for the vision encoder, as "500MB"')
    arguments = parser.parse_args()
    method = arguments.method or (None if arguments.profile else "divprune")

    model, processor = vlmcompress.load(arguments.model)
    clip = vlmcompress.read_video(arguments.video)
    content = [{"type": "video"}, {"type": "text", "text": arguments.question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(
        videos=[clip.frames],
        video_metadata=[clip.metadata()],
        do_sample_frames=False,  # read_video has sampled
        text=text,
        return_tensors="pt",
    )
    inputs = inputs.to(model.device, dtype=model.dtype)
    prompt_length = inputs["input_ids"].shape[1]

    def answer() -> str:
        ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        return processor.decode(ids[0, prompt_length:], skip_special_tokens=True).strip()

    print("all tokens:", answer())
    with vlmcompress.compress(
        model, method, arguments.budget, profile=arguments.profile, max_memory=arguments.max_memory
    ) as compression:
        print("fewer tokens:", answer())
    print(compression.report())


if __name__ == "__main__":
    main()
