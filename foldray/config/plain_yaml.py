"""YAML of recipes and overrides, without what makes a small file a large value."""

from typing import Any

import yaml

MAX_CHARACTERS = 2**20
"""Most characters of a recipe."""


class _PlainLoader(yaml.SafeLoader):
    """A safe loader that refuses aliases: nine lines of them describe a billion values."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it repeats a part with an alias (*name); write the part out")
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML or JSON text.

    Raises:
        yaml.YAMLError: The text is not YAML, nested too deeply, longer than `MAX_CHARACTERS`, or has aliases.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"it has over {MAX_CHARACTERS:,} characters")
    try:
        return yaml.load(text, _PlainLoader)  # noqa: TID251  # a safe loader
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # a date or a number that there is not
        raise yaml.YAMLError(str(error)) from None
