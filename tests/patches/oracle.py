"""What the laws compare with: the bare model, its attention closed where tokens are gone."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest
import torch
from kv_cache import cache_in, cached
from subjects import BidirectionalSubject

from vlmcompress.api import compress
from vlmcompress.errors import UnsupportedCallError

TOLERANCE = 1e-4
SELECTORS = ["divprune", "random", "stride", "pool", "text-only"]
DECODER = ["fastv", "pyramiddrop"]
BOTH = ["divprune+fastv", "pool+pyramiddrop"]
LATE = ["inject", "inject(layer=2)", "divprune+inject(layer=4)"]
BUDGET = {
    "text-only": None,
    "inject": "70%",
    "inject(layer=2)": None,
    "fastv": "55%",
    "pyramiddrop": "55%",
}


def budget(method: str) -> str | None:
    return BUDGET.get(method, "25%")


def drops(report: Any, subject: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Per decoder layer [B, L]: which columns of the full prompt are still there."""
    present = [inputs["attention_mask"].bool().clone() for _ in range(subject.layers)]
    spans = {row: subject.columns(line) for row, line in enumerate(inputs["input_ids"])}
    for row, images in groupby(report.images, key=lambda image: image.row):
        for image, columns in zip(images, spans[row], strict=True):
            for layer in range(subject.layers):
                kept, ends = left(subject, image, layer)
                present[layer][row, columns] = False
                present[layer][row, subject.visual(columns)[kept]] = True
                present[layer][row, columns[ends]] = True
    return [each & inputs["attention_mask"].bool() for each in present]


def left(subject: Any, image: Any, layer: int) -> tuple[list[int], list[int]]:
    """Visual tokens that enter a layer, and which placeholders of separators do.

    What ends a row of the picture stays as long as anything of the row does.
    """
    kept = image.kept
    for cut, survivors in sorted(image.cuts.items()):
        kept = survivors if cut <= layer else kept
    return kept, [p for p, a, b in subject.separators if any(a <= k < b for k in kept)]


def embed(report: Any, subject: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Input embeddings of the full prompt, merged tokens written at the place of their group."""
    base = subject.model.model
    embeds = base.get_input_embeddings()(inputs["input_ids"])
    if not any(name.startswith("pixel_values") for name in inputs):
        return embeds
    features = subject.features(inputs)
    places = subject.visual(torch.arange(subject.placeholders))
    for image, feature in zip(report.images, features, strict=True):
        if image.groups is not None:
            original = feature[places]
            for place, group in zip(image.kept, image.groups, strict=True):
                feature[places[place]] = original[group].mean(0)
    mask = (inputs["input_ids"] == subject.image_token)[..., None].expand_as(embeds)
    return embeds.masked_scatter(mask, features)


def oracle(
    report: Any,
    subject: Any,
    inputs: dict[str, torch.Tensor],
    attentions: int | None = None,
    images: Any = (),
) -> torch.Tensor:
    """The bare model on the full prompt, dropped tokens closed by a 4-D mask for each layer.

    Returns last-token logits, or the attention [B, H, L, L] of one layer, as it would be if that
    layer did not cut `images`.
    """
    present, seen = drops(report, subject, inputs), []
    if attentions is None:
        return subject.model.lm_head(masked(report, subject, inputs, present, "eager")[:, -1])
    uncut = [
        replace(i, cuts={c: s for c, s in i.cuts.items() if c != attentions or i not in images})
        for i in report.images
    ]
    present[attentions] = drops(replace(report, images=uncut), subject, inputs)[attentions]
    watched = subject.lm.layers[attentions].self_attn
    handle = watched.register_forward_hook(lambda *a: seen.append(a[-1][1]))
    masked(report, subject, inputs, present, "eager")
    handle.remove()
    return seen[0]


def every_row(
    report: Any, subject: Any, inputs: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [B, L, V] of the same model, and [B, L] bool: the tokens that reach its last layer.

    The rows of others mean nothing. Attention is SDPA, for eager attention rounds to float32.
    """
    present = drops(report, subject, inputs)
    return subject.model.lm_head(masked(report, subject, inputs, present, "sdpa")), present[-1]


@torch.no_grad()
def masked(
    report: Any,
    subject: Any,
    inputs: dict[str, torch.Tensor],
    present: list[torch.Tensor],
    attention: str,
    bias: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """[B, L, D]: what the bare decoder gives, every layer seeing the columns that are `present`.

    `bias` is added to the attention logits, [B, L, L] for each layer.
    """
    positions = inputs.get("position_ids")
    positions = subject.positions(inputs) if positions is None else positions
    lm, handles = subject.lm, []
    for number, (layer, keys) in enumerate(zip(lm.layers, present, strict=True)):
        allowed = (subject.allowed(inputs, number) & keys[:, None, :])[:, None]
        mask = torch.zeros(allowed.shape, dtype=lm.dtype)
        mask = mask.masked_fill(~allowed, torch.finfo(lm.dtype).min)
        mask = mask if bias is None else mask + bias[number][:, None].to(lm.dtype)

        def closed(_: Any, args: Any, kwargs: Any, mask: torch.Tensor = mask) -> Any:
            return args, {**kwargs, "attention_mask": mask}

        handles.append(layer.register_forward_pre_hook(closed, with_kwargs=True))
    handles += entering(report, subject, inputs)
    implementation = lm.config._attn_implementation
    subject.model.set_attn_implementation(attention)
    try:
        return lm(
            inputs_embeds=embed(report, subject, inputs),
            position_ids=positions,
            attention_mask=inputs["attention_mask"],
            **subject.lm_inputs(
                inputs,
                [dict(zip(i.kept, i.groups or [], strict=False)) for i in report.images],
            ),
        ).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
        subject.model.set_attn_implementation(implementation)


def entering(report: Any, subject: Any, inputs: dict[str, torch.Tensor]) -> list[Any]:
    """Hooks that give images which enter late, in front of that layer, what they came with."""
    seen: list[torch.Tensor] = []
    late: dict[int, list[tuple[int, torch.Tensor]]] = {}
    spans = {row: subject.columns(line) for row, line in enumerate(inputs["input_ids"])}
    for row, images in groupby(report.images, key=lambda image: image.row):
        for image, columns in zip(images, spans[row], strict=True):
            if 0 in image.cuts:
                late.setdefault(max(image.cuts), []).append((row, columns))

    def hook(number: int) -> Any:
        def entered(_: Any, args: Any, kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            if number == 0:
                seen.append(hidden.clone())
                return None
            hidden = hidden.clone()
            for row, columns in late[number]:
                hidden[row, columns] = seen[0][row, columns]
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        return entered

    numbers = [0, *late] if late else []
    return [
        subject.lm.layers[n].register_forward_pre_hook(hook(n), with_kwargs=True) for n in numbers
    ]


def second_turn(
    subject: Any, method: str, new_images: int
) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    """Two turns on one cache: a report of both, the whole prompt, the second's first logits."""
    first = [subject.prompt(1, 8, text=4), subject.prompt(2, 9, text=7)]
    inputs = subject.batch(*first)
    following = [subject.prompt(new_images, 10), subject.prompt(new_images, 11)]
    pixels = [turn[row][1] for row in (0, 1) for turn in (first, following)]
    with compress(subject.model, method, budget=budget(method)) as c:
        out = subject.generate(inputs, return_dict_in_generate=True)
        one, cache = c.report(), cache_in(out)
        answer = out.sequences[:, inputs["input_ids"].shape[1] :]
        rest = torch.tensor([ids for ids, _ in following])
        new = torch.ones(2, answer.shape[1] + rest.shape[1], dtype=torch.long)
        ids = torch.cat([out.sequences, rest], 1)
        whole = {
            "input_ids": ids,
            "attention_mask": torch.cat([inputs["attention_mask"], new], 1),
            **subject.types(ids),
            **subject.images(pixels),
        }
        if new_images:
            logits = more(subject, whole, cache, subject.images([p for _, p in following]))
        else:
            given = {name: v for name, v in whole.items() if not name.startswith("pixel")}
            given = {name: v for name, v in given.items() if name not in (subject.extra or ())}
            logits = subject.generate(
                given | cached(subject.model, cache),
                max_new_tokens=1,
                return_dict_in_generate=True,
                output_logits=True,
            ).logits[0]
            # The last token of the answer was not yet given to the model.
            done = answer.shape[1] - 1
            whole["position_ids"] = continued(subject, inputs, whole["attention_mask"], done)
        reports = [one, c.report()] if new_images else [one]
    images = [i for row in (0, 1) for report in reports for i in report.images if i.row == row]
    numbered = [replace(image, index=index) for index, image in enumerate(images)]
    return replace(one, images=numbered), whole, logits


def continued(
    subject: Any, inputs: dict[str, torch.Tensor], attention_mask: torch.Tensor, answer: int
) -> torch.Tensor:
    """Positions of a prompt and of what follows on it, as `generate` makes them.

    The tokens of an answer go on from the last token, another turn goes on from the largest
    position: they differ where a clip reaches further than the text after it.
    """
    first, mask = subject.positions(inputs), inputs["attention_mask"]
    answered = first[..., -1:] + torch.arange(1, answer + 1)
    largest = first.masked_fill(mask == 0, 0).amax(-1).view(-1, len(mask)).amax(0)
    text = attention_mask.cumsum(-1)[:, mask.shape[1] + answer :] - 1
    rest = text + (largest + 1 - mask.sum(1))[:, None]
    return torch.cat([first, answered, rest.expand(*first.shape[:-1], -1)], -1)


def refused(subject: Any, method: str) -> bool:
    """Bidirectional images cannot be masked where layers hold different tokens: that must raise."""
    if not isinstance(subject, BidirectionalSubject) or method in SELECTORS:
        return False
    with pytest.raises(UnsupportedCallError, match="new image cannot follow"):
        second_turn(subject, method, 1)
    return True


@torch.no_grad()
def more(subject: Any, whole: dict[str, torch.Tensor], cache: Any, images: Any) -> torch.Tensor:
    """A forward on what the cache does not hold yet of the whole prompt."""
    start = cache.get_seq_length()
    ids = whole["input_ids"][:, start:]
    output = subject.model(
        input_ids=ids,
        attention_mask=whole["attention_mask"],
        position_ids=subject.positions(whole)[..., start:],
        **cached(subject.model, cache),
        **subject.types(ids),
        **images,
    )
    return output.logits[:, -1]


def check_ranking(
    subject: Any, report: Any, inputs: dict[str, torch.Tensor], image: Any, images: Any
) -> None:
    """Every cut of `image` kept the tokens that the last row of eager attention ranks highest.

    `images` are those that were cut in the same forward.
    """
    mine = [other.index for other in report.images if other.row == image.row].index(image.index)
    columns = subject.visual(subject.columns(inputs["input_ids"][image.row])[mine])
    alive, noted = image.kept, False
    assert image.cuts
    for cut, survivors in sorted(image.cuts.items()):
        layer = cut - 1 if report.method == "fastv" else cut
        # A window that ends behind the image would rank nothing: the full layer before does it.
        full = [n for n in range(layer) if not subject.slides(n)]
        blind = subject.slides(layer) and not full
        noted |= blind
        layer = max(full) if subject.slides(layer) and full else layer
        attention = oracle(report, subject, inputs, layer, images)
        weights = attention[image.row, :, -1].mean(0)
        dropped = sorted(set(alive) - set(survivors))
        worst, best = weights[columns[survivors]].min(), weights[columns[dropped]].max()
        assert worst >= best - 1e-6
        assert weights[columns[alive]].std() > 1e-6 or blind
        alive = survivors
    assert noted == any("sees 12 tokens back" in note for note in image.notes)
