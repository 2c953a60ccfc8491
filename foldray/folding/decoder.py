"""Decoders on a folded encoder, whose batch axis holds every depth that runs: stock ones, and folded ones."""

from typing import Any

import torch
from torch import Tensor, nn

from foldray.errors import UserError
from foldray.folding.rows import rows_of
from foldray.folding.stack import FoldedStack, number_caches

PER_UTTERANCE = ("input_ids", "attention_mask", "encoder_attention_mask", "inputs_embeds", "position_ids")
"""Decoder arguments with one row per utterance; the encoder's states have one per utterance and depth."""


class DecoderStack(FoldedStack):
    """Physical layers of a decoder. Each depth of the encoder has a path of its own through them.

    Nothing is shared between paths but the stored layers: the cross-attention of a path reads the encoder's states of
    its own depth from the first layer on.

    Attributes:
        run_depths: The decoder's depths, one for each depth that the encoder runs, in the same order.
    """

    def forward(self, hidden_NUD: Tensor, /, *args: Any, **kwargs: Any) -> Tensor:
        """Run the rows of each depth along its path.

        Args:
            hidden_NUD: Input states (P*B, U, D), all utterances of the first depth first.
            args, kwargs: The encoder's states, masks, positions and so on, passed to every block; of what has P*B rows
                each path gets its own.

        Returns:
            States (P*B, U, D).
        """
        paths = [self.plan.path(depth) for depth in self.run_depths]
        if len(set(paths)) == 1:
            return self._run(paths[0], hidden_NUD, args, kwargs)
        # The layers of a cache are those of one path. The decoder may have made one, which stays empty: with
        # use_cache=False it would look for packed sequences, which waits for the device.
        kwargs = {**kwargs, "cache": None, "use_cache": False}
        rows = len(hidden_NUD)
        if rows % len(paths):
            raise ValueError(f"the decoder has {rows} rows, not a multiple of the {len(paths)} depths")
        ends = []
        for number, path in enumerate(paths):
            own = slice(number * rows // len(paths), (number + 1) * rows // len(paths))
            ends.append(self._run(path, *rows_of((hidden_NUD, args, kwargs), own, rows)))
        return torch.cat(ends)

    def _run(self, path: tuple[int, ...], hidden_BUD: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
        cache = kwargs.get("cache")
        if cache is not None:
            _lengthen(cache, len(path))
        for length in range(1, len(path) + 1):
            if cache is not None:
                number_caches(self[path[length - 1]], length - 1)
            hidden_BUD, _ = self._advance(path[:length], (hidden_BUD, None), args, kwargs)
        return hidden_BUD


def _lengthen(cache: Any, length: int) -> None:
    """Add layers to a cache: transformers makes as many as the configuration has blocks, which is the seed's number."""
    for part in (cache.self_attention_cache, cache.cross_attention_cache):
        if part.layers and hasattr(part.layers[0], "max_cache_len"):
            raise UserError("cache_implementation", "a folded decoder generates with a dynamic cache; leave it out")
        while part.layers and len(part.layers) < length:
            part.layers.append(type(part.layers[0])())


def repeat_for_depths(decoder: nn.Module) -> None:
    """Install a hook that repeats a decoder's per-utterance inputs once for each depth that the encoder runs."""
    decoder.register_forward_pre_hook(_repeat, with_kwargs=True)


def _repeat(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    states, given = kwargs.get("encoder_hidden_states"), kwargs.get("input_ids")
    given = kwargs.get("inputs_embeds") if given is None else given
    if states is None or given is None:
        return args, kwargs
    has_paths = isinstance(decoder.layers, DecoderStack) and len(decoder.layers.run_depths) > 1
    if (has_paths or len(states) != len(given)) and kwargs.get("cache") is not None:
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
