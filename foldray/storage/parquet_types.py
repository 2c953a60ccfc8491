"""The types of Parquet columns: those whose values run code when they are read are refused."""

from collections.abc import Sequence

import pyarrow as pa

from foldray.errors import UserError

_EXTENSION = b"ARROW:extension:name"
_PLAIN_EXTENSIONS = {"arrow.json", "arrow.uuid"}
"""Extension types of Arrow itself whose values become `str` and `uuid.UUID`."""


def check_plain(schema: pa.Schema, columns: Sequence[str], where: str) -> None:
    """Raise UserError if one of the columns has an extension type, or contains one.

    The name in a field's metadata counts too: whether it becomes a type depends on what else is imported.

    Args:
        schema: The schema of a file.
        columns: Names of columns, or paths in them.
        where: The file, for messages.
    """
    roots = {*columns, *(column.partition(".")[0] for column in columns)}
    for field in schema:
        found = _extension(field) if field.name in roots else None
        if found:
            raise UserError(where, f"column '{field.name}' has the extension type {found}; write it with a plain type")


def _extension(field: pa.Field) -> str | None:
    """The name of the first extension type in a field that is not known to be plain, None without one."""
    kind = field.type
    name = (field.metadata or {}).get(_EXTENSION, b"").decode(errors="replace")
    if isinstance(kind, pa.BaseExtensionType):
        name = kind.extension_name
        if type(kind) not in (pa.JsonType, pa.UuidType):
            return str(name)
    if name and name not in _PLAIN_EXTENSIONS:
        return str(name)
    inner = [pa.field("", kind.value_type)] if pa.types.is_dictionary(kind) else []
    inner += [kind.field(i) for i in range(kind.num_fields)]
    return next(filter(None, map(_extension, inner)), None)
