"""Fill the teacher's cache: human answers are read, the model's own are generated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from prepare.base_model import BaseModel
from prepare.exit_training.prompts import Lot, bare_header, plan_lots
from prepare.exit_training.teacher import Lesson, Teacher
from prepare.exit_training.teacher_cache import TeacherCache
from shared.chat import ChatTemplate, Message
from shared.prompt_file import Exchange

_MAX_PROMPT_TOKENS = 320
_MAX_INVENTED_TOKENS = 96


@dataclass(frozen=True)
class LessonPlan:
    """How lessons are made; what differs here makes another cache.

    Attributes:
        invented: prompts that the model thinks up, on top of the given ones.
        human_share: share of the given prompts whose human answer is taught as well.
        max_tokens: longest answer.
        lot_size: sequences decoded together (one shard).
        sampled_share: share of lots answered at temperature 0.7 instead of greedily.
    """

    invented: int = 4096
    human_share: float = 0.1
    max_tokens: int = 160
    lot_size: int = 128
    sampled_share: float = 0.25
    seed: int = 0


class LessonMaker:
    """Turns a plan into shards, one at a time, resuming where an earlier run stopped."""

    def __init__(
        self, model: BaseModel, teacher: Teacher, exchanges: Sequence[Exchange], plan: LessonPlan
    ) -> None:
        self._model = model
        self._teacher = teacher
        self._plan = plan
        self._template = ChatTemplate(model.chat_template)
        distinct = {e.prompt: e for e in exchanges}
        self._exchanges = {
            prompt: exchange
            for prompt, exchange in distinct.items()
            if len(self._encode(prompt)) <= _MAX_PROMPT_TOKENS
        }
        self.too_long = len(distinct) - len(self._exchanges)
        self.lots = plan_lots(
            list(self._exchanges),
            invented=plan.invented,
            lot_size=plan.lot_size,
            sampled_share=plan.sampled_share,
            seed=plan.seed,
        )

    def describe(self) -> dict[str, object]:
        """What the cache's ``plan.json`` records: all that the lessons' text depends on."""
        return {
            **asdict(self._plan),
            "text_sha256": self._text_sha256(),
            "base_sha256": self._model.source.sha256,
        }

    def _text_sha256(self) -> str:
        digest = hashlib.sha256()
        for exchange in self._exchanges.values():
            digest.update(json.dumps([exchange.prompt, exchange.response]).encode())
        return digest.hexdigest()

    def fill(
        self, cache: TeacherCache, advance: Callable[[int], None], count: int | None = None
    ) -> None:
        """Make what is missing of the first ``count`` shards (``None``: of all of them), and add
        the teacher's layers to those that have only others; ``advance`` hears of each lot."""
        layers = self._teacher.layers
        for index, lot in enumerate(self.lots[:count]):
            held = cache.layers(index)
            if held is None:
                cache.write(index, self._lessons(index, lot), layers)
            elif not held.issuperset(layers):
                self._add_layers(cache, index, held)
            advance(1)

    def _add_layers(self, cache: TeacherCache, index: int, held: frozenset[int]) -> None:
        """Go on from the deepest states that lie below what is missing, or read the text again."""
        missing = tuple(layer for layer in self._teacher.layers if layer not in held)
        start = max((layer for layer in held if layer < missing[0]), default=0)
        if start:
            states = [lesson.hidden[:, 0] for lesson in cache.read(index, (start,))]
        else:
            states = [self._teacher.embed(x.token_ids) for x in cache.read(index, ())]
        cache.add_states(index, self._teacher.hidden_states(states, start, missing), missing)

    def _lessons(self, index: int, lot: Lot) -> list[Lesson]:
        generator = torch.Generator(self._teacher.device)
        generator.manual_seed(self._plan.seed * 1_000_003 + index)
        if lot.invented:
            prompts = self._invent(lot.invented, generator)
        else:
            prompts = [self._encode(text) for text in lot.prompts]
        prompts = sorted((p for p in prompts if len(p) <= _MAX_PROMPT_TOKENS), key=len)
        lessons = self._teacher.answer(
            prompts,
            max_tokens=self._plan.max_tokens,
            temperature=lot.temperature,
            generator=generator,
        )
        return lessons + self._human_lessons(lot)

    def _human_lessons(self, lot: Lot) -> list[Lesson]:
        wanted = round(len(lot.prompts) * self._plan.human_share)
        pairs = [self._exchanges[p] for p in lot.prompts[:wanted] if self._exchanges[p].response]
        prompts = [self._encode(e.prompt) for e in pairs]
        answers = [
            self._model.tokenizer.encode(e.response or "").ids[: self._plan.max_tokens]
            for e in pairs
        ]
        kept = [(p, a) for p, a in zip(prompts, answers, strict=True) if a]
        kept = [(p, a) for p, a in kept if len(p) <= _MAX_PROMPT_TOKENS]
        if not kept:
            return []
        return self._teacher.teach([p for p, _ in kept], [a for _, a in kept])

    def _encode(self, prompt: str) -> list[int]:
        return encode_prompt(self._model, self._template, prompt)

    def _invent(self, count: int, generator: torch.Generator) -> list[list[int]]:
        """Sample users' words from the bare chat header, then add what precedes an answer."""
        header = self._model.tokenizer.encode(bare_header(self._template)).ids
        whole = self._template.render([Message("user", "\x00")])
        tail = self._model.tokenizer.encode(whole.split("\x00")[1]).ids
        drafts = self._teacher.answer(
            [header] * count,
            max_tokens=_MAX_INVENTED_TOKENS,
            temperature=1.0,
            generator=generator,
        )
        return [[*map(int, draft.token_ids), *tail] for draft in drafts]


def encode_prompt(model: BaseModel, template: ChatTemplate, prompt: str) -> list[int]:
    """Token ids of a chat whose only turn is ``prompt``, up to where the answer begins."""
    return list(model.tokenizer.encode(template.render([Message("user", prompt)])).ids)


def answered_prompts(
    model: BaseModel,
    teacher: Teacher,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    together: int = 40,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Lesson]:
    """The full model's greedy answers; ``advance`` hears how many more were given."""
    template = ChatTemplate(model.chat_template)
    encoded = sorted((encode_prompt(model, template, prompt) for prompt in prompts), key=len)
    lessons = []
    for start in range(0, len(encoded), together):
        some = encoded[start : start + together]
        lessons += teacher.answer(
            some, max_tokens=max_tokens, temperature=0.0, generator=torch.Generator(teacher.device)
        )
        advance(len(some))
    return lessons
