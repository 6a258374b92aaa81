"""Positions in shortened prompts: cut, marked and settled again, without vLLM."""

from itertools import pairwise

import pytest
import torch

from vlmcompress.serving.vllm.positions import (
    COLUMNS,
    Run,
    columns_of,
    marked,
    one_axis,
    settled,
    unpruned,
)

WIDTH = 4


def three_axes(length, runs):
    """Positions of a whole prompt in which each run of features is a grid 1 x n/3 x 3."""
    columns, at = [], 0
    for start, count in [*runs, (length, 0)]:
        columns += [[p] * 3 for p in range(at, at + start - len(columns))]
        at = columns[-1][0] + 1 if columns else 0
        columns += [[at, at + n // 3, at + n % 3] for n in range(count)]
        at = max((max(c) for c in columns), default=-1) + 1
    positions = torch.tensor(columns).T
    return positions, int(positions.max()) + 1 - length


class Prompt:
    """A prompt with features in the places of `given`, of which `kept` stay."""

    def __init__(self, texts, given, kept, axes):
        self.kept, whole, places, starts, short = kept, [], [], [], 0
        for number, text in enumerate(texts):
            whole += list(range(text))
            short += text
            if number < len(given):
                starts.append((len(whole), given[number], short))
                whole += [0] * given[number]
                short += len(kept[number])
        self.runs = [Run(at, len(k), n) for (_, n, at), k in zip(starts, kept, strict=True)]
        self.length = short
        self.whole = (
            three_axes(len(whole), [(s, n) for s, n, _ in starts]) if axes else one_axis(whole, [])
        )
        places = list(range(len(whole)))
        for (start, count, _), k in zip(starts, kept, strict=True):
            gone = {start + n for n in range(count)} - {start + n for n in k}
            places = [p for p in places if p not in gone]
        self.right = self.whole[0][:, places]
        self.after = int(self.whole[0].shape[1]) + self.whole[1]
        self.visual = torch.zeros(short, dtype=torch.bool)
        for run in self.runs:
            self.visual[run.start : run.start + run.kept] = True
        self.embeddings = []
        for (start, count, _), k in zip(starts, kept, strict=True):
            relative = self.whole[0][:, start : start + count] - self.whole[0][:, start : start + 1]
            features = torch.zeros(len(k), WIDTH, dtype=torch.bfloat16)
            columns = columns_of(relative[:, list(k)], features)
            self.embeddings.append(torch.cat([features, columns], 1))

    def stretch(self, start, stop):
        """The embeddings of a stretch of the prompt, as a runner cuts them."""
        found = []
        for run, rows in zip(self.runs, self.embeddings, strict=True):
            low, high = max(start, run.start), min(stop, run.start + run.kept)
            if low < high:
                found.append(rows[low - run.start : high - run.start])
        return found


PROMPTS = {
    "one image": ([3, 4], [9], [(0, 4, 8)]),
    "first": ([0, 2], [6], [(1, 2)]),
    "last": ([2, 0], [9], [(0, 5)]),
    "adjacent": ([1, 0, 2], [6, 9], [(0, 3), (2, 7, 8)]),
    "kept whole": ([2, 1, 3], [3, 6], [(0, 1, 2), (5,)]),
    "beyond a byte": ([1, 2], [900], [(3, 255, 256, 511, 899)]),
    "only text": ([7], [], []),
}


@pytest.fixture(params=[False, True], ids=["one axis", "three axes"])
def axes(request):
    return request.param


@pytest.fixture(params=PROMPTS, ids=str)
def prompt(request, axes):
    return Prompt(*PROMPTS[request.param], axes)


def test_text_is_right_at_once_and_visual_tokens_wait(prompt):
    positions, delta = marked(*prompt.whole, prompt.runs, prompt.length)
    assert torch.equal(positions[:, ~prompt.visual], prompt.right[:, ~prompt.visual])
    assert (positions[:, prompt.visual] < 0).all()
    assert delta + prompt.length == prompt.after


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_chunks_of_any_size_give_the_positions_of_the_whole_prompt(prompt, size):
    positions, _ = marked(*prompt.whole, prompt.runs, prompt.length)
    delta = None
    for start in range(0, prompt.length, size):
        rows = prompt.stretch(start, start + size)
        clean, positions, found = settled(positions, rows, prompt.visual, start)
        assert all(one.shape[1] == WIDTH for one in clean)
        delta = found if found is not None else delta
    assert torch.equal(positions, prompt.right)
    assert delta is not None
    assert delta + prompt.length == prompt.after


def test_repeating_a_stretch_changes_nothing(prompt):
    once, _ = marked(*prompt.whole, prompt.runs, prompt.length)
    for _ in range(2):
        rows = prompt.stretch(0, prompt.length)
        _, once, _ = settled(once, rows, prompt.visual, 0)
        assert torch.equal(once, prompt.right)


def test_what_was_cached_needs_no_positions(prompt):
    """A stretch that begins inside an image: the tokens before it were computed earlier."""
    if not prompt.runs:
        pytest.skip("nothing to begin in")
    start = prompt.runs[0].start + prompt.runs[0].kept // 2
    positions, _ = marked(*prompt.whole, prompt.runs, prompt.length)
    rows = prompt.stretch(start, prompt.length)
    _, positions, _ = settled(positions, rows, prompt.visual, start)
    assert torch.equal(positions[:, start:], prompt.right[:, start:])


def test_places_in_the_whole_prompt_ascend(prompt):
    columns, begins = unpruned(prompt.runs, prompt.length)
    assert len(columns) == prompt.length
    assert all(a <= b for a, b in pairwise(columns.tolist()))
    assert len(begins) == len(prompt.runs)


def test_columns_hold_whole_numbers_in_bfloat16():
    relative = torch.tensor([[0, 1, 255, 256, 257, 65535]]).expand(3, -1)
    columns = columns_of(relative, torch.zeros(0, dtype=torch.bfloat16))
    assert columns.shape == (6, COLUMNS)
    low, high = columns.float().T.view(2, 3, -1)
    assert torch.equal(low + 256 * high, relative.float())
