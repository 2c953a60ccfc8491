"""URIs of local files and S3 objects: parsing, joining and splitting, without any request."""

import re
from pathlib import Path

from foldray.errors import UserError

UNSUPPORTED = "is not a supported location; use a folder or s3://bucket/prefix"


def absolute(uri: str) -> str:
    """Return a URI that workers on other hosts can use: local paths become absolute.

    Raises UserError for anything but a path or `s3://bucket…`.
    """
    if is_s3(uri) and uri.removeprefix("s3://").strip("/"):
        return uri.rstrip("/")
    if re.match(r"\w+:/", uri) and not uri.startswith("file://"):
        raise UserError(uri, UNSUPPORTED)
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


def local_path(uri: str) -> Path:
    """Return the path of a local URI. Raises UserError for other URIs."""
    return Path(absolute(uri))


def is_local(uri: str) -> bool:
    """Return whether the URI is a local path."""
    return "://" not in uri or uri.startswith("file://")


def is_s3(uri: str) -> bool:
    """Return whether the URI is in an S3 bucket."""
    return uri.startswith("s3://")


def is_known(uri: str) -> bool:
    """Return whether the URI has a supported scheme."""
    return is_local(uri) or is_s3(uri)


def join(uri: str, *parts: str) -> str:
    """Append parts to a URI with single slashes; options after '?' stay at the end.

    A '?' in a part belongs to a file's name and is written as %3F, since '?' begins the options of a URI; what looks
    like that in a name is written as %253F.
    """
    if is_local(uri):
        return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])
    base, mark, options = uri.partition("?")
    return "/".join([base.rstrip("/"), *(_escaped(part.strip("/")) for part in parts)]) + mark + options


_ESCAPED = re.compile("%((?:25)*)3F")


def _escaped(name: str) -> str:
    """A name as part of a URI with options."""
    return _ESCAPED.sub(r"%25\g<1>3F", name).replace("?", "%3F")


def _unescaped(path: str) -> str:
    """The name that `_escaped` was given."""
    return _ESCAPED.sub(lambda found: f"%{found[1][2:]}3F" if found[1] else "?", path)


def is_plain(name: str) -> bool:
    """Return whether a name is one component of a path: it can name nothing outside its folder."""
    return bool(name) and name not in (".", "..") and not any(character in name for character in "/\\\0")


def is_relative(path: object) -> bool:
    """Return whether a value is a relative path of plain names."""
    return isinstance(path, str) and all(map(is_plain, path.split("/")))


def inside(uri: str, *names: str) -> str:
    """Append names that were read from somewhere, so that the result is below the folder.

    Args:
        uri: The folder.
        names: Each is a plain name or a relative path of them.

    Raises:
        UserError: A name is absolute, empty or not a string, or leaves the folder.
    """
    for name in names:
        if not is_relative(name):
            raise UserError(bare(uri), f"{str(name)[:80]!r} is not the name of anything in it")
    return join(uri, *names)


def split(uri: str) -> tuple[str, str]:
    """Return the parent folder of a URI and its name there; options after '?' stay with the folder."""
    base, mark, options = (uri, "", "") if is_local(uri) else uri.partition("?")
    folder, _, name = base.rstrip("/").rpartition("/")
    return folder + mark + options, name


def relative(uri: str, folder: str) -> str:
    """Return the path of a URI relative to a folder, or the URI itself if it is not below it."""
    base, _, options = folder.partition("?") if not is_local(folder) else (folder, "", "")
    if options and not uri.endswith(f"?{options}"):
        # A row of a manifest, `URI:number`, has its number after the options.
        path, _, number = uri.partition(f"?{options}")
        uri = path + number
    elif options:
        uri = uri.removesuffix(f"?{options}")
    return uri.removeprefix(base.rstrip("/") + "/")


def filesystem_path(uri: str) -> str:
    """Return the local path, or bucket and key as S3 has them: without options, %3F as '?', %253F as '%3F'."""
    return absolute(uri) if is_local(uri) else _unescaped(uri.split("://", 1)[1].partition("?")[0])


def place(uri: str) -> str:
    """Return what selects the client of a URI: scheme, bucket and options; '' for local files."""
    if is_local(uri):
        return ""
    scheme, _, rest = uri.partition("://")
    key, mark, options = rest.partition("?")
    return f"{scheme}://{key.split('/', 1)[0]}{mark}{options}"


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Split a URI of S3 into bucket and key. Raises UserError if the bucket is missing."""
    bucket, _, key = filesystem_path(uri).partition("/")
    if not bucket:
        raise UserError(uri, UNSUPPORTED)
    return bucket, key.strip("/")


def bare(uri: str) -> str:
    """Return a URI without its options."""
    return uri.partition("?")[0]
