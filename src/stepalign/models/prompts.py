"""From text to token ids and back, with nothing lost on the way.

Prompts are built once, from templates and the tokenizer's chat template; texts that a model or a data set wrote are
data, so no control token can come out of them. Completions are ids from the moment they are sampled; text is derived
from ids together with the span of characters behind each id.
"""

from __future__ import annotations

import copy
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stepalign.domains.math.thinking import is_mark, opened_thought
from stepalign.errors import ConfigError
from stepalign.records import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from stepalign.feedback.prompts import Template

# Control tokens in a context are spelled out as they are inside a prompt, so that both counts agree.
_NO_TEMPLATE = "{{ messages[-1]['content'] }}"
_TURN = "turn"
"""Some text of the solver's, where a template is asked what it writes around it."""
_FORMAT_TAG = re.compile(r"</?(?:step[ _-]?(?:\d+|N)|(?:final[ _-]?)?answer)>", re.I)
"""Tags of the solver's own format. Where a tokenizer has them as tokens, a trace in a context is made of them too."""


@dataclass(frozen=True, slots=True)
class TeacherPrompt:
    """Prompt ids of the self-teacher."""

    ids: tuple[int, ...]
    dropped_tokens: int
    """Tokens of the context that did not fit. The question and the generation suffix are never cut."""


_OWN_OPTIONS = frozenset(
    (
        *("conversation", "chat_template", "tokenize", "return_dict", "return_tensors", "tokenizer_kwargs"),
        *("add_generation_prompt", "continue_final_message", "sanitize_control_tokens", "truncation", "max_length"),
    )
)
"""Arguments of the function that applies a template. Through them an option could change the template, or let control
tokens of a problem through."""


class PromptBuilder:
    """Renders what student and self-teacher read.

    Raises:
        ConfigError: the two sides would start their completion after different tokens, so the first token's log-ratio
            would measure the chat template and not the feedback; or the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        student: Template,
        self_teacher: Template,
        system: str = "",
        student_chat_options: Mapping[str, Any] | None = None,
        teacher_chat_options: Mapping[str, Any] | None = None,
        max_teacher_prompt_length: int = 8192,
        context_length: int | None = None,
        completion_length: int = 0,
        allow_different_suffix: bool = False,
    ) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                "the tokenizer has no chat template, so no prompt can be built",
                where="model.path",
                hint="take the instruction-tuned variant of the model, or put a chat_template.jinja into its folder",
            )
        self._tokenizer = copy.copy(tokenizer)
        self._tokenizer.chat_control_tokens = control_tokens(tokenizer)  # type: ignore[attr-defined]
        self._student, self._self_teacher = student, self_teacher
        self._system = system
        self._student_options = dict(student_chat_options or {})
        self._teacher_options = dict(teacher_chat_options or {})
        self._limits = max_teacher_prompt_length, context_length
        self.max_teacher_prompt_length = self._room_beside(completion_length)
        """Tokens, of which none is taken from a completion of the usual length."""
        self._check_template()
        suffixes = [self._suffix(options) for options in (self._student_options, self._teacher_options)]
        if suffixes[0] != suffixes[1] and not allow_different_suffix:
            raise ConfigError(
                "student and self-teacher would begin their completion after different tokens: "
                f"{tokenizer.decode(suffixes[0])!r} against {tokenizer.decode(suffixes[1])!r}",
                where="prompts.student_chat_options, prompts.teacher_chat_options",
                hint="give both the same options, or accept it with --set prompts.allow_different_suffix=true",
            )

    def _check_template(self) -> None:
        """Raises ConfigError where the chat template refuses the options, or refuses or drops the system message."""
        for side, options in (("student", self._student_options), ("teacher", self._teacher_options)):
            if taken := sorted(_OWN_OPTIONS & options.keys()):
                raise ConfigError(
                    f"{taken[0]} is no option of a chat template",
                    where=f"prompts.{side}_chat_options",
                    hint="options are variables of the model's own template, such as enable_thinking",
                )
            user = [{"role": "user", "content": "x"}]
            try:
                without = self._apply(user, **options)
            except Exception as error:
                raise ConfigError(
                    f"the chat template refuses these options: {error}",
                    where=f"prompts.{side}_chat_options",
                    hint="they are the arguments of the model's own chat template",
                ) from error
            try:
                shown = self._apply(self._messages("x"), **options)
            except Exception:
                shown = without
            if shown == without and self._system.strip() not in self._tokenizer.decode(shown):
                raise ConfigError(
                    "the model's chat template has no place for a system message",
                    where="prompts.system",
                    hint='--set prompts.system="", and put its text into prompts.student and prompts.self_teacher',
                )

    def student(self, problem: Problem) -> tuple[int, ...]:
        """Prompt ids of the student: the question alone."""
        return tuple(self._encode(self._student.render(question=problem.question), self._student_options))

    def messages_ids(self, messages: list[dict[str, str]]) -> tuple[int, ...]:
        """Prompt ids of other messages to the same solver, with the self-teacher's chat options."""
        return tuple(self._encode(messages, self._teacher_options))

    def reply(self, text: str, last_id: int) -> tuple[int, ...]:
        """The ids between a completion and the next one: a user's message and the opening of the solver's turn.

        The ids so far are never encoded again. Where the completion did not end itself, the token that ends the
        solver's turn comes first.

        Args:
            last_id: the completion's last.

        Raises:
            ConfigError: the chat template does not mark the end of the solver's turn.
        """
        begun = [*self._messages("x"), {"role": "assistant", "content": _TURN}]
        more = [*begun, {"role": "user", "content": text}]
        whole: list[int] = self._apply(more, add_generation_prompt=True, **self._student_options)
        closed: list[int] = self._apply(begun, **self._student_options)
        opened = len(self._encode("x", self._student_options))
        _, special = _special_ids(self._tokenizer, len(self._tokenizer))
        ends = [place for place, token in enumerate(closed) if token in special and place >= opened]
        if not ends:
            return self._plain_reply(begun, more)
        # Templates may write an earlier turn in another way than the last one: the end is found by counting its token.
        end = closed[ends[-1]]
        places = [place for place, token in enumerate(whole) if token == end]
        after = places[closed[: ends[-1] + 1].count(end) - 1]
        return tuple(whole[after + (last_id in special) :])

    def _plain_reply(self, begun: list[dict[str, str]], more: list[dict[str, str]]) -> tuple[int, ...]:
        """The same for a template that ends the solver's turn with plain text, if at all."""
        plain = {**self._student_options, "tokenize": False, "sanitize_control_tokens": False}
        before, whole = self._apply(begun, **plain), self._apply(more, add_generation_prompt=True, **plain)
        if not whole.startswith(before):
            raise ConfigError(
                "the chat template does not mark the end of the solver's turn, so that no turn can follow",
                where="environment.kind, model.path",
                hint="take the instruction-tuned variant of the model, or --set environment=single",
            )
        rest = before.rpartition(_TURN)[2] + whole[len(before) :]
        return tuple(self._tokenizer.encode(rest, add_special_tokens=False, split_special_tokens=True))

    def cut(self, text: str, length: int) -> tuple[str, int]:
        """The beginning of a text that was written elsewhere, of at most ``length`` tokens, and the tokens left out."""
        ids = self._encode(text, {"chat_template": _NO_TEMPLATE})
        return (text, 0) if len(ids) <= length else (self._beginning(text, ids[:length]), len(ids) - length)

    def _room_beside(self, completion_length: int) -> int:
        longest, context_length = self._limits
        return longest if context_length is None else max(1, min(longest, context_length - completion_length))

    def self_teacher(
        self, problem: Problem, context: str, *, introduction: str = "", completion_length: int | None = None
    ) -> TeacherPrompt:
        """Prompt ids of the self-teacher: the question and the context, which the introduction says what it is.

        Args:
            completion_length: tokens of the completion that follows, where it is known.

        Raises:
            ConfigError: the question alone leaves no room for a context.
        """
        limit = self.max_teacher_prompt_length if completion_length is None else self._room_beside(completion_length)
        ids = self._teacher_ids(problem, context, introduction)
        if len(ids) <= limit:
            return TeacherPrompt(tuple(ids), 0)
        context_ids = self._encode(context, {"chat_template": _NO_TEMPLATE})
        room = len(context_ids) - (len(ids) - limit)
        while room > 0:
            ids = self._teacher_ids(problem, self._beginning(context, context_ids[:room]), introduction)
            excess = len(ids) - limit
            if excess <= 0:
                return TeacherPrompt(tuple(ids), len(context_ids) - room)
            room -= excess
        raise ConfigError(
            f"the question of problem {problem.problem_id} leaves no room for a context in the self-teacher's prompt",
            where=f"prompts.max_teacher_prompt_length = {limit}"
            if limit == self._limits[0]
            else f"{limit} tokens are left of the model's {self._limits[1]} by a completion",
            hint="drop the problem, take a model with more positions, or raise prompts.max_teacher_prompt_length",
        )

    def has_room(self, problem: Problem, introduction: str = "") -> bool:
        """Whether the self-teacher's prompt has room for a context, however short, besides the question."""
        return len(self._teacher_ids(problem, "x", introduction)) <= self.max_teacher_prompt_length

    def _beginning(self, context: str, ids: Sequence[int]) -> str:
        """The text of a context's first tokens, without the torn half of a character."""
        text = decode(self._tokenizer, ids)
        return text if context.startswith(text) else text.rstrip("\ufffd")

    def _teacher_ids(self, problem: Problem, context: str, introduction: str) -> list[int]:
        shown = {"question": problem.question, "feedback": context, "introduction": introduction}
        return self._encode(self._self_teacher.messages(**shown), self._teacher_options)

    def _encode(
        self, text: str | list[dict[str, str]], options: Mapping[str, Any], *, generation: bool = True
    ) -> list[int]:
        return self._apply(self._messages(text), add_generation_prompt=generation, **options)

    def _messages(self, text: str | list[dict[str, str]]) -> list[dict[str, str]]:
        """A text, or messages that a template made, with the system message in front unless they bring one."""
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
        own = not self._system or messages[0]["role"] == "system"
        return messages if own else [{"role": "system", "content": self._system}, *messages]

    def _apply(self, messages: list[dict[str, str]], **options: Any) -> Any:
        # Sanitised: a "<|im_end|>" inside a problem stays text.
        defaults = {"tokenize": True, "return_dict": False, "sanitize_control_tokens": True}
        return self._tokenizer.apply_chat_template(messages, **{**defaults, **options})

    def _suffix(self, options: Mapping[str, Any]) -> list[int]:
        """The tokens between the user's turn and the completion."""
        without = self._encode("x", options, generation=False)
        return self._encode("x", options)[len(without) :]


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The added tokens that only a chat template may write; in any other text they are spelled out.

    Special ones, and everything that looks like markup (``<think>``, ``<|fim_prefix|>``, ``[INST]``): added words and
    runs of spaces are ordinary vocabulary, and so are the tags of the solver's own format.
    """
    return [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (re.fullmatch(r"<.+>|\[.+\]", token.content) and not _FORMAT_TAG.fullmatch(token.content))
    ]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a completion, without special tokens but for those that mark thinking."""
    marks, hidden = _special_ids(tokenizer, len(tokenizer))
    if marks.isdisjoint(ids):
        return tokenizer.decode(list(ids), skip_special_tokens=True)  # type: ignore[return-value]
    return tokenizer.decode([i for i in ids if i not in hidden], skip_special_tokens=False)  # type: ignore[return-value]


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text of one token, or its name in the vocabulary where it has none."""
    return decode(tokenizer, [token]) or str(tokenizer.convert_ids_to_tokens(token))


@lru_cache(maxsize=32)
def _special_ids(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[frozenset[int], frozenset[int]]:
    """The special tokens that mark thinking, and all others."""
    added = tokenizer.added_tokens_decoder
    special = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    marks = {index for index in special if index in added and is_mark(added[index].content)}
    return frozenset(marks), frozenset(special - marks)


def opened_by(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int]) -> str:
    """The mark of a thought that a prompt opens at its end, "" for none: graders read it before the completion."""
    return opened_thought(tokenizer.decode(list(prompt_ids[-32:]), skip_special_tokens=False))  # type: ignore[arg-type]


def unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of all that the vocabulary has no tokens for. None where another control token doubles as it."""
    found = tokenizer.unk_token_id
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return None if found in others else found  # type: ignore[return-value]


def encode_with_spans(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]] | None]:
    """The ids of a text that was written elsewhere, control tokens spelled out, and the characters behind each id.

    The spans cover the whole text, whatever the vocabulary lacks or a normaliser drops: a character that belongs to no
    token goes with the token after it, the end of a line with the one before. None where the ids spell the text by
    themselves, or the tokenizer has no offsets: then ``decode_with_spans`` has them.
    """
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    if not ids or not tokenizer.is_fast or decode(tokenizer, ids) == text:
        return ids, None
    found = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    spans: list[tuple[int, int]] = []
    reached = 0
    for start, end in found["offset_mapping"]:
        if end > reached:
            line = text.rfind("\n", reached, start) + 1
            if line and spans:  # what ends a line goes with the token before it
                pieces = spans.count(spans[-1])
                spans[-pieces:] = [(spans[-1][0], line)] * pieces
                reached = line
            spans.append((reached, end))
            reached = end
        else:
            spans.append(spans[-1] if spans else (0, 0))  # a further piece of a character
    last = spans[-1]
    return ids, [(last[0], len(text)) if span == last else span for span in spans]


def decode_with_spans(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of a completion and the half-open span of characters behind each id.

    Special tokens have an empty span. Ids that share one character (pieces of a multi-byte one) share its span, so
    every span holds whole characters. Linear in the number of ids: each id is decoded behind a short window only.

    Raises:
        ValueError: the pieces do not join to the decoded text (a tokenizer that rewrites earlier text).
    """
    _, special = _special_ids(tokenizer, len(tokenizer))
    whole = decode(tokenizer, ids)
    pieces: list[str] = []
    spans: list[tuple[int, int]] = []
    length = 0
    window: list[int] = []  # ids already turned into text, kept as the left neighbour of the next ones
    pending: list[int] = []  # ids whose characters are not complete yet
    pending_rows: list[int] = []
    for row, token in enumerate(ids):
        spans.append((length, length))
        if token in special:
            continue
        pending.append(token)
        pending_rows.append(row)
        piece, settled = _settled(tokenizer, window, pending)
        for pending_row in pending_rows[:settled]:
            spans[pending_row] = (length, length + len(piece))
        pieces.append(piece)
        length += len(piece)
        window = [*window, *pending[:settled]][-4:]
        pending, pending_rows = pending[settled:], pending_rows[settled:]
    for pending_row in pending_rows:
        spans[pending_row] = (length, len(whole))
    pieces.append(whole[length:])
    if "".join(pieces) != whole:
        raise ValueError("the tokenizer decodes a prefix differently from the whole; spans would be misaligned")
    return whole, spans


def _settled(tokenizer: PreTrainedTokenizerBase, window: list[int], pending: list[int]) -> tuple[str, int]:
    """The text of the first so many pending ids that no later id can change, and their number.

    The last replacement mark may be the beginning of a character. The text before it is settled; we look for
    that only in long runs of bytes that are no text, so that a character's pieces stay together.
    """
    start = len(decode(tokenizer, window))
    now = decode(tokenizer, [*window, *pending])
    if not now.endswith("\ufffd"):
        return now[start:], len(pending)
    for count in range(len(pending) - 1, max(0, len(pending) - 5), -1) if len(pending) >= 8 else ():
        before = decode(tokenizer, [*window, *pending[:count]])
        if len(before) < len(now) and now.startswith(before):
            return before[start:], count
    return "", 0


def tokens_to_steps(text: str, spans: Sequence[tuple[int, int]], starts: Sequence[int]) -> list[int]:
    """Index of the step each token belongs to, -1 before the first.

    A token belongs where its first visible character is: many tokenizers put the blank before a word into the word's
    token, and the tag that opens a step must not count for the step before it. Tokens without text go with the token
    before them.

    Args:
        starts: first character of every step, ascending.
    """
    owners: list[int] = []
    for start, end in spans:
        piece = text[start:end]
        visible = start + len(piece) - len(piece.lstrip()) if piece.strip() else start
        before = owners[-1] if owners else -1
        owners.append(max(before, bisect_right(starts, visible) - 1) if end > start or not owners else before)
    return owners
