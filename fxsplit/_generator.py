"""The transformers model around a graph; imported only when transformers is there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, Seq2SeqLMOutput
from transformers.utils.generic import ModelOutput

from fxsplit._errors import InputError, SpecError
from fxsplit._generator_inputs import complete_inputs, same, text_first
from fxsplit._split._model import SplitModel
from fxsplit._split._source import Source, describe_source

# What generation asks of every model, and no graph can change.
_CONTROLS = frozenset(
    {"return_dict", "use_cache", "past_key_values", "cache", "cache_position", "logits_to_keep", "num_items_in_batch"}
)
_REFUSED = ("output_attentions", "output_hidden_states")


class Inputs(nn.Module):
    """Stands for the encoder: hands its input on, because the graph runs encoder and decoder in one."""

    def __init__(self, main_input: str) -> None:
        super().__init__()
        self.main_input_name = main_input

    def forward(self, **kwargs: Any) -> BaseModelOutput:
        """The input in place of hidden states, so that generation repeats it for every beam."""
        return BaseModelOutput(last_hidden_state=kwargs[self.main_input_name])


class NetForGeneration(PreTrainedModel, GenerationMixin):
    """A traced or split model as a transformers model; made by `fxsplit.as_generator`.

    ``net`` is the model inside.
    """

    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, net: nn.Module, names: tuple[str, ...], source: Source) -> None:
        super().__init__(source.config or PreTrainedConfig())
        # Generation knows the tokens of a decoder by this name only.
        self.main_input_name = source.main_input if self.config.is_encoder_decoder else "input_ids"
        self.generation_config = source.generation_config or self.generation_config
        self.generation_config.use_cache = False
        self.all_tied_weights_keys: dict[str, str] = {}  # set by post_init, which would draw the weights anew
        self.net = net
        self.inputs = Inputs(self.main_input_name)
        self._names = names

    @classmethod
    def can_generate(cls) -> bool:
        """Always."""
        return True

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Not possible: the graph is not part of such a folder."""
        raise SpecError("Load the net with fxsplit.load(path, model), and wrap it with fxsplit.as_generator(net).")

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        """What stands for the encoder."""
        return self.inputs

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the net keeps its own ties."""

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """All tokens so far, at every step."""
        name = "decoder_input_ids" if self.config.is_encoder_decoder else "input_ids"
        accepted = inspect.signature(self.forward).parameters
        return {name: input_ids} | {key: value for key, value in kwargs.items() if key in accepted}

    def run(self, *args: Any, **kwargs: Any) -> ModelOutput:
        """What ``forward`` does, under whichever names the net has for its inputs."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        values = {key: value for key, value in given.items() if value is not None and key not in _CONTROLS}
        for name in _REFUSED:
            if values.pop(name, False):
                raise InputError(f"{name}=True was not traced, so the graph doesn't return it. Leave it out.")
        encoded = values.pop("encoder_outputs", None)
        if encoded is not None:
            values.setdefault(self.main_input_name, encoded[0])
        main = self.main_input_name
        if main not in self._names and main in values:
            main, tokens = self._names[0], values.pop(main)
            values[main] = tokens
        values, invented = complete_inputs(values, self._names, main, self.config)
        restore = same
        if not self.config.is_encoder_decoder and "position_ids" not in self._names:
            values, restore = text_first(values)
        known = {name: value for name, value in values.items() if name in self._names}
        return self._as_output(self.net(**known), restore, keep_loss=not invented)

    def _as_output(self, found: Any, restore: Callable[[Tensor], Tensor], keep_loss: bool) -> ModelOutput:
        if not isinstance(found, ModelOutput):
            logits = found if isinstance(found, Tensor) else found[0]
            kind = Seq2SeqLMOutput if self.config.is_encoder_decoder else CausalLMOutput
            return kind(logits=restore(logits))
        fields = {key: value for key, value in found.items() if keep_loss or key != "loss"}
        if isinstance(fields.get("logits"), Tensor):
            fields["logits"] = restore(fields["logits"])
        return type(found)(**fields)


def build_generator(net: nn.Module, graph: fx.GraphModule) -> PreTrainedModel:
    """Wrap ``net``, which holds ``graph``."""
    source = graph.source if isinstance(graph, SplitModel) else describe_source(graph)
    names = tuple(str(node.target) for node in graph.graph.nodes if node.op == "placeholder")
    accepted = ["input_ids", *names, "attention_mask", "labels"]
    if getattr(source.config, "is_encoder_decoder", False):
        accepted += ["decoder_input_ids", "decoder_attention_mask", "encoder_outputs"]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, default=None) for name in dict.fromkeys(accepted)]

    def forward(self: NetForGeneration, *args: Any, **kwargs: Any) -> ModelOutput:
        return self.run(*args, **kwargs)

    # Generation reads off the signature what a model takes: position_ids, for instance.
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("self", kind),
            *parameters,
            inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
        ]
    )
    members = {"forward": forward, "__doc__": NetForGeneration.__doc__}
    return type(NetForGeneration.__name__, (NetForGeneration,), members)(net, names, source)
