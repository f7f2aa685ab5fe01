"""The model that lm-evaluation-harness sees; imported only when it is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from recipes.evaluation._errors import EvaluationError
from recipes.evaluation._language import head_token_logits
from recipes.evaluation._predict import device_of, evaluation_mode
from recipes.evaluation._votes import Vote

_MAX_NEW_TOKENS = 256  # as the harness does if a task says nothing

# A request as the harness hands it over: its texts, and the tokens of context and continuation.
Request = tuple[Any, list[int], list[int]]


class HarnessModel(TemplateLM):
    """A split language model for lm-evaluation-harness, made by `harness_model`.

    Args:
        net: The network.
        tokenizer: Its tokenizer.
        vote: From `[M, ..., V]` to log-probabilities `[..., V]`.
        max_length: Most tokens the network takes.
        batch_size: Sequences per forward pass.

    Raises:
        EvaluationError: The tokenizer has no `eos_token_id`.
    """

    def __init__(self, net: nn.Module, tokenizer: Any, vote: Vote, max_length: int, batch_size: int) -> None:
        super().__init__()
        if getattr(tokenizer, "eos_token_id", None) is None:
            raise EvaluationError(
                f"The tokenizer {type(tokenizer).__name__} has no eos_token_id, which starts texts without context and "
                "ends others. Set tokenizer.eos_token."
            )
        self.net = net
        self.tokenizer = tokenizer
        self.vote = vote
        self.max_length = max_length
        self.batch_size = batch_size
        self._device = device_of(net)

    @property
    def eot_token_id(self) -> int:
        """Token at the end of a text."""
        return int(self.tokenizer.eos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Turn text into tokens; without special ones unless asked, since the vote was trained on running text."""
        return list(self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)))

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows that each predict new tokens from as much context as fits."""
        totals = []
        for request in tqdm(requests, disable=disable_tqdm):
            tokens = self.tok_encode(request.args[0])
            windows = utils.get_rolling_token_windows(
                token_list=tokens, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            pairs = [utils.make_disjoint_window(window) for window in windows]
            scored = self._loglikelihood_tokens([(None, *pair) for pair in pairs], disable_tqdm=True)
            totals.append(sum(score for score, _ in scored))
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        # Sequences of like length make batches with little padding; the longest first shows at once if memory lasts.
        order = sorted(range(len(requests)), key=lambda index: -sum(map(len, requests[index][1:])))
        chunks = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        for chunk in tqdm(chunks, desc="Running loglikelihood requests", disable=disable_tqdm):
            for index, answer in zip(chunk, self._score([requests[index][1:] for index in chunk]), strict=True):
                answers[index] = answer
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
        return answers

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether it is the most probable one throughout."""
        rows = []
        for context, continuation in pairs:
            if len(continuation) > self.max_length:
                raise EvaluationError(
                    f"A continuation has {len(continuation)} tokens, but the network takes {self.max_length}. Raise "
                    "max_length, if the network was trained for it, or leave the task out."
                )
            rows.append(torch.tensor((context + continuation)[-self.max_length - 1 :]))
        voted = self._vote([row[:-1] for row in rows])
        answers = []
        for number, (row, (_, continuation)) in enumerate(zip(rows, pairs, strict=True)):
            targets = row[len(row) - len(continuation) :]
            scores = voted(number, len(row) - 1, len(targets))
            chosen = scores.gather(-1, targets[:, None].to(scores.device))
            greedy = bool((scores.argmax(dim=-1).cpu() == targets).all())
            answers.append((float(chosen.double().sum()), greedy))
        return answers

    def _vote(self, rows: Sequence[Tensor]) -> Any:
        """Run the network on rows of tokens; what comes back votes on the last tokens of a row when asked for it."""
        tokens = pad_sequence(list(rows), batch_first=True, padding_value=self.eot_token_id).to(self._device)
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        mask = (torch.arange(tokens.shape[1], device=self._device) < lengths[:, None]).long()
        with evaluation_mode(self.net):
            heads = head_token_logits(self.net, tokens, mask)

        def voted(row: int, end: int, count: int) -> Tensor:
            # Only these: log-probabilities of all tokens by all heads would fill the memory.
            return self.vote(torch.stack([head[row, end - count : end].float() for head in heads]))

        return voted

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Continue texts with the most probable tokens, up to a stop text, without key-value cache."""
        answers = []
        for request in tqdm(requests, desc="Running generate_until requests", disable=disable_tqdm):
            context, options = request.args
            if options.get("do_sample") and options.get("temperature", 1.0) > 0:
                raise EvaluationError("This adapter takes the most probable token; set do_sample to false in the task.")
            stops = options.get("until") or []
            answer = self._continue(
                context,
                [stops] if isinstance(stops, str) else list(stops),
                options.get("max_gen_toks", _MAX_NEW_TOKENS),
            )
            self.cache_hook.add_partial("generate_until", request.args, answer)
            answers.append(answer)
        return answers

    def _continue(self, context: str, stops: Sequence[str], most: int) -> str:
        tokens = self.tok_encode(context) or [self.prefix_token_id]
        new: list[int] = []
        text = ""
        while len(new) < most:
            row = torch.tensor((tokens + new)[-self.max_length :])
            token = int(self._vote([row])(0, len(row), 1).argmax())
            if token == self.eot_token_id:
                break
            new.append(token)
            text = self.tokenizer.decode(new)
            ends = [text.index(stop) for stop in stops if stop and stop in text]
            if ends:
                return text[: min(ends)]
        return text
