"""Stock decoders on a folded encoder, whose batch axis holds every depth that runs."""

from typing import Any

from torch import nn

from foldray.errors import UserError

PER_UTTERANCE = ("input_ids", "attention_mask", "encoder_attention_mask", "inputs_embeds", "position_ids")
"""Decoder arguments with one row per utterance; the encoder's states have one per utterance and depth."""


def repeat_for_depths(decoder: nn.Module) -> None:
    """Install a hook that repeats a decoder's per-utterance inputs once for each depth that the encoder runs."""
    decoder.register_forward_pre_hook(_repeat, with_kwargs=True)


def _repeat(_decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    states, given = kwargs.get("encoder_hidden_states"), kwargs.get("input_ids")
    given = kwargs.get("inputs_embeds") if given is None else given
    if states is None or given is None or len(states) == len(given):
        return args, kwargs
    if kwargs.get("cache") is not None:
        raise UserError("depth", "generation runs one depth; choose it with set_depths(model, [depth])")
    repeated = {
        name: value.repeat(len(states) // len(value), *[1] * (value.ndim - 1))
        for name in PER_UTTERANCE
        if (value := kwargs.get(name)) is not None and len(value) < len(states)
    }
    return args, {**kwargs, **repeated}


def decode_once(decoder: nn.Module) -> None:
    """Undo `repeat_for_depths`."""
    for key, hook in list(decoder._forward_pre_hooks.items()):
        if hook is _repeat:
            del decoder._forward_pre_hooks[key], decoder._forward_pre_hooks_with_kwargs[key]
