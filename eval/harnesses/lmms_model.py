"""The model class that lmms-eval runs; see `lmms_plugin` beside it for how it finds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger
from tqdm import tqdm

from vlmcompress.eval.harnesses.harness import (
    HarnessAnswer,
    HarnessSettings,
    Subject,
    alike,
    conversation,
)
from vlmcompress.eval.harnesses.lmms_plugin import Generation, read_batch_size, summarize
from vlmcompress.eval.run.cases import FULL


class VLMCompress(lmms):  # type: ignore[misc]
    """Any supported model under one method and budget.

    Args:
        batch_size: prompts of one call.
        max_batch_size: given by lmms-eval; without meaning.
        settings: see `HarnessSettings`.

    Raises:
        VLMCompressError: an argument is unknown, missing or wrong, or the model cannot be had.
    """

    is_simple = False

    def __init__(self, batch_size: Any = 1, max_batch_size: Any = None, **settings: Any) -> None:
        super().__init__()
        self.batch_size = read_batch_size(batch_size)
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        if self._world_size > 1 and settings.get("device") is None:
            settings["device"] = str(self.accelerator.device)
        self.subject: Subject | None = Subject(HarnessSettings.read(settings))
        self.device = self.subject.model.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer, in batches of requests with the same `generation_kwargs`.

        Raises:
            VLMCompressError: a prompt cannot be asked. Nothing is scored as an empty answer.
        """
        answers: dict[int, HarnessAnswer] = {}
        texts: dict[int, str] = {}
        seconds = self._subject.seconds
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc="vlmcompress")
        for places in alike([request.args[2] for request in requests]):
            generation = Generation.read(requests[places[0]].args[2])
            if generation.ignored:
                logger.warning(f"generation_kwargs without effect: {', '.join(generation.ignored)}")
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                found = self._ask([requests[place] for place in batch], generation)
                answers |= dict(zip(batch, found, strict=True))
                texts |= {place: generation.cut(answers[place].text) for place in batch}
                bar.update(len(batch))
        bar.close()
        self._log(list(answers.values()), self._subject.seconds - seconds)
        return [
            GenerationResult(
                texts[place],
                TokenCounts(answers[place].input_tokens, answers[place].output_tokens),
            )
            for place in range(len(requests))
        ]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not supported."""
        raise NotImplementedError("vlmcompress runs generate_until tasks, no loglikelihood tasks")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not supported."""
        raise NotImplementedError("vlmcompress runs generate_until tasks, no multi-round tasks")

    def clean(self) -> None:
        """Free the model, as lmms-eval asks for before it scores."""
        self.subject = None
        super().clean()

    @property
    def _subject(self) -> Subject:
        if self.subject is None:
            raise RuntimeError("lmms-eval has cleaned this model up: make another")
        return self.subject

    def _ask(self, requests: Sequence[Instance], generation: Generation) -> list[HarnessAnswer]:
        prompts = []
        for request in requests:
            _, messages, _, document, task, split = request.args
            content = messages(self.task_dict[task][split][document])
            prompts.append(conversation(content, self._subject.settings))
        return self._subject.ask(prompts, **generation.arguments)

    def _log(self, answers: Sequence[HarnessAnswer], seconds: float) -> None:
        """For the efficiency summary; a loud warning where nothing was dropped."""
        generated = sum(answer.output_tokens for answer in answers)
        found = summarize(answers)
        method = self._subject.settings.method
        if found.get("visual_share_kept") == 1 and method != FULL:
            logger.warning(f"{method} dropped NOTHING: every visual token was kept")
        log_metrics(
            total_elapsed_time=seconds,
            total_gen_tokens=generated,
            avg_speed=generated / seconds if seconds else 0.0,
            additional_metrics=found,
        )
