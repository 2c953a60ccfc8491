"""URIs: what a location is, before anything is asked of it."""

import re
from pathlib import Path

from foldray.errors import UserError

NO_PLACE = "is no place foldray can use; give a folder or s3://bucket/prefix"


def absolute(uri: str) -> str:
    """A URI or path as workers on any host of the run may use it: local paths become absolute.

    Raises UserError for what is neither a path nor `s3://bucket…`.
    """
    if is_s3(uri) and uri.removeprefix("s3://").strip("/"):
        return uri.rstrip("/")
    if re.match(r"\w+:/", uri) and not uri.startswith("file://"):
        raise UserError(uri, NO_PLACE)
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


def local_path(uri: str) -> Path:
    """The path of a local URI. Raises UserError for any other."""
    return Path(absolute(uri))


def is_local(uri: str) -> bool:
    """Whether the URI is a plain folder or file of this machine."""
    return "://" not in uri or uri.startswith("file://")


def is_s3(uri: str) -> bool:
    """Whether the URI is in a bucket."""
    return uri.startswith("s3://")


def is_known(uri: str) -> bool:
    """Whether the URI is of a kind that is read at all."""
    return is_local(uri) or is_s3(uri)


def join(uri: str, *parts: str) -> str:
    """Parts appended to a URI with single slashes; options after '?' stay at the end.

    A '?' in a part is a letter of its name: it stands as %3F in a URI, where '?' begins the options.
    """
    if is_local(uri):
        return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])
    base, mark, options = uri.partition("?")
    return "/".join([base.rstrip("/"), *(part.strip("/").replace("?", "%3F") for part in parts)]) + mark + options


def split(uri: str) -> tuple[str, str]:
    """The folder that a URI lies in, and its name there; options after '?' stay with the folder."""
    base, mark, options = (uri, "", "") if is_local(uri) else uri.partition("?")
    folder, _, name = base.rstrip("/").rpartition("/")
    return folder + mark + options, name


def relative(uri: str, folder: str) -> str:
    """The path of a URI below a folder; the URI itself where it lies elsewhere."""
    base, _, options = folder.partition("?") if not is_local(folder) else (folder, "", "")
    if options and not uri.endswith(f"?{options}"):
        # A row of a manifest: `URI:number`, the number behind the options.
        path, _, rest = uri.partition(f"?{options}")
        uri = path + rest
    elif options:
        uri = uri.removesuffix(f"?{options}")
    return uri.removeprefix(base.rstrip("/") + "/")


def filesystem_path(uri: str) -> str:
    """The path of a URI inside its filesystem: keys as they are, since names may hold any character."""
    return absolute(uri) if is_local(uri) else uri.split("://", 1)[1].partition("?")[0].replace("%3F", "?")


def place(uri: str) -> str:
    """What decides which filesystem serves a URI: nothing for local files, else scheme, bucket and options."""
    if is_local(uri):
        return ""
    scheme, _, rest = uri.partition("://")
    key, mark, options = rest.partition("?")
    return f"{scheme}://{key.split('/', 1)[0]}{mark}{options}"


def bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = filesystem_path(uri).partition("/")
    if not bucket:
        raise UserError(uri, NO_PLACE)
    return bucket, key.strip("/")


def bare(uri: str) -> str:
    return uri.partition("?")[0]
